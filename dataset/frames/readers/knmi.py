"""Frames in KNMI's own HDF5, the format of its archives to 2023.

Row 0 is the north edge. https://www.knmi.nl/kennis-en-datacentrum/publicatie/knmi-hdf5-data-format-specification-v3-5
"""

import re
from pathlib import Path

import h5py

from dataset.frames.attributes import numbers_of, text_of
from dataset.frames.config import FramesConfig
from dataset.frames.values import Meaning, StoredFrame, agreed, physical

NUMBER = r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)"
FORMULA = re.compile(rf"\s*GEO\s*=\s*{NUMBER}\s*\*\s*PV\s*\+?\s*{NUMBER}\s*")
UNITS = re.compile(r"\[(.+)\]\s*$")  # as in ACCUMULATED_PRECIPITATION_[MM]


def is_knmi(data: h5py.Dataset) -> bool:
    """Whether a calibration as in KNMI's files lies next to the data."""
    group = data.parent
    own = isinstance(group.get("calibration", getlink=True), h5py.HardLink)
    return own and bool(text_of(group["calibration"], "calibration_formulas"))


def read_knmi(data: h5py.Dataset, path: Path, config: FramesConfig) -> StoredFrame:
    """Read a frame `(H, W)`, NaN where missing or outside the picture."""
    calibration = data.parent["calibration"]
    formula = FORMULA.fullmatch(text_of(calibration, "calibration_formulas"))
    if formula is None:
        raise ValueError("its calibration_formulas are not of the form GEO=a*PV+b")
    missing = numbers_of(calibration, "calibration_missing_data") + numbers_of(calibration, "calibration_out_of_image")
    units = UNITS.search(text_of(data.parent, "image_geo_parameter"))
    meaning = Meaning(float(formula[1]), float(formula[2]), missing, units=units and units[1])
    return physical(data[()].reshape(data.shape[-2:]), agreed(path, meaning, config))
