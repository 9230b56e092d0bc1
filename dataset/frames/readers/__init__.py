"""How each format stores a frame, and what it says about it.

A reader takes the path of a file and the name of a dataset in it, or None. It returns stored values `(H, W)` from north
to south, masked where missing, and their metadata.
"""

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from dataset.frames.readers.hdf5 import opened
from dataset.frames.readers.knmi import is_knmi, read_knmi
from dataset.frames.readers.meteoswiss import read_meteoswiss
from dataset.frames.readers.netcdf import read_netcdf
from dataset.frames.readers.odim import is_odim, read_odim
from dataset.frames.readers.pgm import read_pgm
from dataset.frames.readers.plain import read_npy, read_png_frame
from dataset.frames.readers.radolan import BEGIN as RADOLAN_BEGIN
from dataset.frames.readers.radolan import read_radolan
from dataset.frames.readers.raster import read_geotiff, read_grib
from dataset.frames.values import Metadata

READERS: dict[str, Callable[[Path, str | None], tuple[np.ndarray, Metadata]]] = {
    "geotiff": read_geotiff,
    "gif": read_meteoswiss,
    "grib": read_grib,
    "knmi": read_knmi,
    "netcdf": read_netcdf,
    "npy": read_npy,
    "odim": read_odim,
    "pgm": read_pgm,
    "png": read_png_frame,
    "radolan": read_radolan,
}
WITH_VARIABLES = ("knmi", "netcdf", "odim")  # formats whose files hold several datasets
MAGIC = {  # how the files of a format begin
    "geotiff": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "gif": re.compile(rb"GIF8[79]a"),
    "npy": re.compile(rb"\x93NUMPY"),
    "grib": re.compile(rb"GRIB"),
    "pgm": re.compile(rb"P5\s"),
    "png": re.compile(rb"\x89PNG"),
    "radolan": RADOLAN_BEGIN,
}


def format_of(path: Path) -> str:
    """Name of the format of a file.

    Raises ValueError if it has no reader.
    """
    if h5py.is_hdf5(path):
        with opened(path) as file:
            return "odim" if is_odim(file) else "knmi" if is_knmi(file) else "netcdf"
    with path.open("rb") as file:
        begin = file.read(100)
    found = [name for name, magic in MAGIC.items() if magic.match(begin)]
    if begin.startswith(b"CDF"):
        raise ValueError("it is NetCDF-3: convert it, for example with `nccopy -k nc4`")
    if not found:
        raise ValueError(f"it begins like none of the formats {', '.join(READERS)}")
    return found[0]
