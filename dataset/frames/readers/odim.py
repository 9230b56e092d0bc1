"""Frames in ODIM HDF5, the format of OPERA.

Most European weather services write it. Row 0 is the north edge. https://www.eumetnet.eu/wp-
content/uploads/2021/07/ODIM_H5_v2.4.pdf
"""

from datetime import datetime
from pathlib import Path

import h5py
import numpy as np

from dataset.frames.georeference import Georeference, is_proj_string, projected
from dataset.frames.packages import has
from dataset.frames.readers.attributes import number_of, numbers_of, parsed_time, text_of
from dataset.frames.readers.hdf5 import frame_dataset, opened, own_group
from dataset.frames.values import Metadata

FIRST_DATA = "dataset1/data1/data"  # the data of a composite; others are its quality
UNITS = {
    **dict.fromkeys(("TH", "TV", "DBZH", "DBZV"), "dBZ"),
    **{"RATE": "mm/h", "ACRR": "mm", "VIL": "kg m-2"},
}


def is_odim(file: h5py.File) -> bool:
    """Whether a file says that it is ODIM."""
    return text_of(file, "Conventions").startswith("ODIM_H5")


def read_odim(path: Path, variable: str | None) -> tuple[np.ndarray, Metadata]:
    """Read stored values `(H, W)`."""
    with opened(path) as file:
        data = frame_dataset(file, variable or FIRST_DATA)
        groups = _whats(file, data)

        def nearest(read, key):  # what stands nearer to the data holds
            return next((value for group in groups if (value := read(group, key)) not in (None, (), "")), None)

        quantity = nearest(text_of, "quantity")
        return data[()].reshape(data.shape[-2:]), Metadata(
            scale=nearest(number_of, "gain"),
            offset=nearest(number_of, "offset"),
            missing=nearest(numbers_of, "nodata") or (),
            dry=nearest(numbers_of, "undetect") or (),
            units=UNITS.get(quantity),
            quantity=quantity,
            time=_time(file),
            georeference=_georeference(file, data.shape[-2:]),
            credits=_credits(file),
        )


def _whats(file: h5py.File, data: h5py.Dataset) -> list[h5py.Group]:
    """The `what` groups that describe the data, nearest first."""
    above = [data.parent.name.strip("/")]
    folder, _, name = above[0].rpartition("/")
    if name.startswith("data"):  # a quality has nothing from the data above it
        above.append(folder)
    found = [own_group(file, f"{group}/what".strip("/")) for group in above]
    return [group for group in found if group is not None]


def _time(file: h5py.File) -> datetime | None:
    """Nominal time, or None."""
    what = own_group(file, "what")
    return parsed_time(text_of(what, "date") + text_of(what, "time"), "%Y%m%d%H%M%S") if what else None


def _credits(file: h5py.File) -> tuple[tuple[str, str], ...]:
    """The centre that made the composite."""
    what = own_group(file, "what")
    origin = text_of(what, "source") if what else ""
    return (("institution", origin),) if origin else ()


def _georeference(file: h5py.File, shape: tuple[int, int]) -> Georeference | None:
    """Coordinates from the upper left corner and the size of a pixel."""
    wheres = [group for name in ("where", "dataset1/where") if (group := own_group(file, name))]
    crs = next((text for where in wheres if (text := text_of(where, "projdef", 500))), "")
    if not is_proj_string(crs) or not has("pyproj"):
        return None
    keys = ("UL_lon", "UL_lat", "xscale", "yscale")
    numbers = {key: number for where in wheres for key in keys if (number := number_of(where, key)) is not None}
    if len(numbers) < len(keys):
        return None
    longitude, latitude, width, height = (numbers[key] for key in keys)
    corner = projected(crs, longitude, latitude)
    return corner and Georeference.of_corner(crs, corner, (width, height), shape)
