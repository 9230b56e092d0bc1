"""Frames in KNMI's own HDF5, the format of its archives to 2023.

Row 0 is the north edge. https://www.knmi.nl/kennis-en-datacentrum/publicatie/knmi-hdf5-data-format-specification-v3-5
"""

import re
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np

from dataset.frames.georeference import Georeference, is_proj_string
from dataset.frames.readers.attributes import number_of, numbers_of, parsed_time, text_of
from dataset.frames.readers.hdf5 import frame_dataset, opened, own_group
from dataset.frames.values import Metadata

FIRST_IMAGE = "image1/image_data"
NUMBER = r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)"
FORMULA = re.compile(rf"\s*GEO\s*=\s*{NUMBER}\s*\*\s*PV\s*\+?\s*{NUMBER}\s*")
PARAMETER = re.compile(r"(.+?)_?\[(.+)\]")  # such as ACCUMULATED_PRECIPITATION_[MM]
UNITS = {"MM": "mm", "MM/H": "mm/h", "DBZ": "dBZ"}
AXIS = re.compile(r"\+([ab])=([\d.]+)")  # of the ellipsoid, in km


def is_knmi(file: h5py.File) -> bool:
    """Whether a file has a calibration as KNMI's files do."""
    calibration = own_group(file, "image1/calibration")
    return calibration is not None and bool(text_of(calibration, "calibration_formulas"))


def read_knmi(path: Path, variable: str | None) -> tuple[np.ndarray, Metadata]:
    """Read stored values `(H, W)`."""
    with opened(path) as file:
        data = frame_dataset(file, variable or FIRST_IMAGE)
        calibration = own_group(file, f"{data.parent.name.strip('/')}/calibration")
        formula = FORMULA.fullmatch(text_of(calibration, "calibration_formulas")) if calibration else None
        if formula is None:
            raise ValueError("its calibration_formulas are not of the form GEO=a*PV+b")
        marks = ("calibration_missing_data", "calibration_out_of_image")
        parameter = PARAMETER.fullmatch(text_of(data.parent, "image_geo_parameter"))
        quantity, units = parameter.groups() if parameter else (None, None)
        return data[()].reshape(data.shape[-2:]), Metadata(
            scale=float(formula[1]),
            offset=float(formula[2]),
            missing=tuple(value for mark in marks for value in numbers_of(calibration, mark)),
            units=UNITS.get(units, units),
            quantity=quantity and quantity.lower().replace("_", " "),
            time=_time(file),
            georeference=_georeference(file, data.shape[-2:]),
        )


def _time(file: h5py.File) -> datetime | None:
    """End of the period, or None."""
    overview = own_group(file, "overview")
    return parsed_time(text_of(overview, "product_datetime_end"), "%d-%b-%Y;%H:%M:%S.%f") if overview else None


def _georeference(file: h5py.File, shape: tuple[int, int]) -> Georeference | None:
    """Coordinates in metres; those of the file are in km."""
    geographic, mapping = (own_group(file, name) for name in ("geographic", "geographic/map_projection"))
    crs = text_of(mapping, "projection_proj4_params", 200) if mapping else ""
    if not is_proj_string(crs):
        return None
    keys = ("geo_column_offset", "geo_row_offset", "geo_pixel_size_x", "geo_pixel_size_y")
    numbers = [number_of(geographic, key) for key in keys]
    if None in numbers:
        return None
    column, row, width, height = (1000 * number for number in numbers)
    crs = AXIS.sub(lambda found: f"+{found[1]}={1000 * float(found[2]):.10g}", crs)
    return Georeference.of_corner(crs, (column, -row), (width, -height), shape)
