"""Frames in ODIM HDF5, the format of OPERA.

Most European weather services write it. Row 0 is the north edge. https://www.eumetnet.eu/wp-
content/uploads/2021/07/ODIM_H5_v2.4.pdf
"""

from pathlib import Path

import h5py

from dataset.frames.attributes import number_of, numbers_of, text_of
from dataset.frames.config import FramesConfig
from dataset.frames.values import Meaning, StoredFrame, agreed, physical

UNITS = {
    **dict.fromkeys(("TH", "TV", "DBZH", "DBZV"), "dBZ"),
    **{"RATE": "mm/h", "ACRR": "mm", "VIL": "kg m-2"},
}


def is_odim(file: h5py.File) -> bool:
    """Whether a file says that it is ODIM."""
    return text_of(file, "Conventions").startswith("ODIM_H5")


def read_odim(data: h5py.Dataset, path: Path, config: FramesConfig) -> StoredFrame:
    """Read a frame `(H, W)`, minus infinity where nothing was detected."""
    groups = _whats(data)

    def nearest(read, key):  # what stands nearer to the data holds
        return next((value for group in groups if (value := read(group, key)) not in (None, (), "")), None)

    meaning = Meaning(
        nearest(number_of, "gain"),
        nearest(number_of, "offset"),
        nearest(numbers_of, "nodata") or (),
        nearest(numbers_of, "undetect") or (),
        UNITS.get(nearest(text_of, "quantity")),
    )
    return physical(data[()].reshape(data.shape[-2:]), agreed(path, meaning, config))


def _whats(data: h5py.Dataset) -> list[h5py.Group]:
    """The `what` groups that describe the data, nearest first."""
    above = [data.parent]
    if data.parent.name.rpartition("/")[2].startswith("data"):  # a quality has nothing from the data above it
        above.append(data.parent.parent)
    linked = [group for group in above if isinstance(group.get("what", getlink=True), h5py.HardLink)]
    return [group["what"] for group in linked]
