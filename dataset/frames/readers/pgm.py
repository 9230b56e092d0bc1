"""Frames in PGM, the format of the Finnish Meteorological Institute (FMI).

Comments in the header hold the metadata. Row 0 is the north edge.
"""

import re
from pathlib import Path

import numpy as np

from dataset.frames.georeference import Georeference, projected
from dataset.frames.packages import has
from dataset.frames.readers.attributes import parsed_time
from dataset.frames.readers.limits import check_frame
from dataset.frames.values import Metadata

MAX_HEADER = 2**16  # bytes
HEADER = re.compile(rb"P5\s(?:\s*#[^\n]*\n)*\s*(\d{1,9})\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s+(?:#[^\n]*\n\s*)*(\d{1,5})\s")
COMMENT = re.compile(r"#\s*(\w+)[ \t]+([^\n]*)")
RADIUS = 6371288  # m, of FMI's sphere
REFLECTIVITY = "CorrectedReflectivity"  # dBZ = (byte - 64) / 2


def read_pgm(path: Path, variable: None) -> tuple[np.ndarray, Metadata]:
    """Read stored values `(H, W)`, of 8 or 16 bits."""
    with path.open("rb") as file:
        header = HEADER.match(file.read(MAX_HEADER))
        if header is None:
            raise ValueError("its header is not that of a binary PGM")
        width, height, highest = (int(number) for number in header.groups())
        kind = np.dtype("u1" if highest < 256 else ">u2")
        check_frame((height, width), kind)
        file.seek(header.end())
        content = file.read(height * width * kind.itemsize)
    if len(content) < height * width * kind.itemsize:
        raise ValueError(f"its {height} x {width} pixels are not complete")
    stored = np.frombuffer(content, kind).reshape(height, width).astype(kind.newbyteorder("="))
    return stored, _metadata(dict(COMMENT.findall(header[0].decode(errors="replace"))), highest, stored.shape)


def _metadata(said: dict[str, str], highest: int, shape: tuple[int, int]) -> Metadata:
    quantity = said.get("param")
    metadata = {
        "quantity": quantity,
        "time": parsed_time(said.get("obstime", ""), "%Y%m%d%H%M"),
        "georeference": _georeference(said, shape),
    }
    if quantity != REFLECTIVITY:
        return Metadata(**metadata)
    return Metadata(scale=0.5, offset=-32.0, missing=(highest,), units="dBZ", **metadata)


def _georeference(said: dict[str, str], shape: tuple[int, int]) -> Georeference | None:
    """Coordinates from the lower left corner, None if the header lacks some."""
    keys = ("centrallatitude", "centrallongitude", "truelatitude", "metersperpixel_x", "metersperpixel_y")
    if said.get("type") != "stereographic" or not has("pyproj") or not {*keys, "bottomleft"} <= said.keys():
        return None
    latitude, longitude, true_latitude, width, height = (float(said[key]) for key in keys)
    crs = f"+proj=stere +lat_0={latitude} +lon_0={longitude} +lat_ts={true_latitude} +R={RADIUS}"
    corner = projected(crs, *(float(degrees) for degrees in said["bottomleft"].split()[:2]))
    return corner and Georeference.of_corner(crs, (corner[0], corner[1] + height * shape[0]), (width, height), shape)
