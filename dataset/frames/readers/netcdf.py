"""Frames in NetCDF-4 by the CF conventions, and in other HDF5.

https://cfconventions.org/Data/cf-conventions/cf-conventions-1.8/cf-conventions.html
https://docs.unidata.ucar.edu/nug/current/attribute_conventions.html
"""

import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from dataset.frames.attributes import number_of, numbers_of, text_of
from dataset.frames.config import FramesConfig
from dataset.frames.turning import turned
from dataset.frames.values import Meaning, StoredFrame, agreed, unknown

DEFAULT_FILLS = {  # of data never written; bytes have none, and those of floats are unknown in any case
    **{"int16": -(2**15) + 1, "uint16": 2**16 - 1, "int32": -(2**31) + 1, "uint32": 2**32 - 1},
    **{"int64": -(2**63) + 2, "uint64": 2**64 - 2},
}


def read_netcdf(file: h5py.File, data: h5py.Dataset, path: Path, config: FramesConfig) -> StoredFrame:
    """Read a frame `(H, W)` with north up and west left."""
    stored = data[()].reshape(data.shape[-2:])
    unsigned = stored.dtype.kind == "i" and text_of(data, "_Unsigned").lower() == "true"
    kind = np.dtype(f"u{stored.dtype.itemsize}") if unsigned else stored.dtype
    span = 2 ** (8 * kind.itemsize)

    def numbers(key: str) -> tuple[float, ...]:  # attributes of unsigned data may be of its signed type
        return tuple(value + span if unsigned and -span / 2 <= value < 0 else value for value in numbers_of(data, key))

    missing = _fills(file, data, kind, numbers("_FillValue")) + numbers("missing_value")
    missing = tuple(value for value in missing if not math.isnan(value))
    scale, offset = number_of(data, "scale_factor"), number_of(data, "add_offset")
    meaning = agreed(path, Meaning(scale, offset, missing, units=text_of(data, "units")), config)
    values = stored.view(kind).astype(np.float64) * meaning.scale + meaning.offset
    # rounded like the stored values, or else -9999.9 would not be found among float32
    marks = np.array(meaning.missing, kind if kind.kind == "f" else np.float64)
    values[np.isin(stored.view(kind), marks)] = np.nan
    low, high = _valid_range(data, numbers, meaning)
    # minus infinity is 10 log10 of no rain, whatever the range
    values[unknown(stored) | (values > high) | ((values < low) & ~np.isneginf(values))] = np.nan
    return StoredFrame(turned(values, file, data), kind.name, meaning.scale, meaning.offset)


def _fills(file: h5py.File, data: h5py.Dataset, kind: np.dtype, declared: tuple[float, ...]) -> tuple[float, ...]:
    """Fill values: the declared one, or else that of NetCDF."""
    if declared or not ("DIMENSION_LIST" in data.attrs or "_NCProperties" in file.attrs):
        return declared
    return tuple(fill for name, fill in DEFAULT_FILLS.items() if name == kind.name)


def _valid_range(data: h5py.Dataset, numbers: Callable, meaning: Meaning) -> tuple[float, float]:
    """Lowest and highest valid value in units."""
    keys = [key for key in ("valid_range", "valid_min", "valid_max") if key in data.attrs]
    limits = numbers("valid_range") or (*(numbers("valid_min") or (-np.inf,)), *(numbers("valid_max") or (np.inf,)))
    if len(limits) != 2:
        raise ValueError("its attributes valid_min, valid_max and valid_range are not two numbers")
    packed = data.dtype.kind in "iu" and ("scale_factor" in data.attrs or "add_offset" in data.attrs)
    if not (packed and keys and np.asarray(data.attrs[keys[0]]).dtype.kind == "f"):  # or else they are in units
        limits = [limit * meaning.scale + meaning.offset for limit in limits]
    return min(limits), max(limits)
