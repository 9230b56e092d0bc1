"""Frames in NetCDF-4 by the CF conventions, and in other HDF5.

https://cfconventions.org/Data/cf-conventions/cf-conventions-1.8/cf-conventions.html
https://docs.unidata.ucar.edu/nug/current/attribute_conventions.html
"""

import contextlib
import math
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import h5py
import numpy as np

from dataset.frames.archive.names import moment, seconds
from dataset.frames.georeference import wkt_of_cf
from dataset.frames.packages import has
from dataset.frames.readers.attributes import number_of, numbers_of, text_of
from dataset.frames.readers.hdf5 import frame_dataset, opened
from dataset.frames.readers.turning import direction_of, turned
from dataset.frames.values import CREDITS, Metadata
from dataset.hdf5 import is_own, own_dataset
from utils.errors import InputError

DEFAULT_FILLS = {  # of data never written; bytes have none, and those of floats are unknown in any case
    **{"int16": -(2**15) + 1, "uint16": 2**16 - 1, "int32": -(2**31) + 1, "uint32": 2**32 - 1},
    **{"int64": -(2**63) + 2, "uint64": 2**64 - 2},
}
TIMES = ("time", "valid_time")
STEPS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
NEVER = -(2**63)
MAX_ATTRIBUTES, MAX_WKT = 50, 10_000  # of a grid mapping; characters
LONGEST_CREDIT = 1000  # characters


def read_netcdf(path: Path, variable: str | None) -> tuple[np.ndarray, Metadata]:
    """Read stored values `(H, W)`, masked where not valid.

    North is up and west is left.
    """
    with opened(path) as file:
        return decode_netcdf(path, file, variable)


def decode_netcdf(path: Path, file: h5py.File, variable: str | None) -> tuple[np.ndarray, Metadata]:
    """Read the frame of an open file, whose path is for messages."""
    data = frame_dataset(file, variable or _only_frame(path, file))
    stored = data[()].reshape(data.shape[-2:])
    unsigned = stored.dtype.kind == "i" and text_of(data, "_Unsigned").lower() == "true"
    kind = np.dtype(f"u{stored.dtype.itemsize}") if unsigned else stored.dtype
    span = 2 ** (8 * kind.itemsize)

    def numbers(key: str) -> tuple[float, ...]:  # attributes of unsigned data may be of its signed type
        stored = numbers_of(data, key)
        return tuple(value + span if unsigned and -span / 2 <= value < 0 else value for value in stored)

    missing = _fills(file, data, kind, numbers("_FillValue")) + numbers("missing_value")
    masked = np.ma.array(stored.view(kind), mask=_invalid(stored.view(kind), data, numbers))
    values, georeference = turned(masked, file, data, _crs(file, data))
    return values, Metadata(
        scale=number_of(data, "scale_factor"),
        offset=number_of(data, "add_offset"),
        missing=tuple(value for value in missing if not math.isnan(value)),
        units=text_of(data, "units"),
        quantity=text_of(data, "standard_name") or text_of(data, "long_name") or data.name.strip("/"),
        time=_time(file),
        georeference=georeference,
        credits=tuple((key, text) for key in CREDITS if (text := text_of(file, key, LONGEST_CREDIT))),
    )


def _only_frame(path: Path, file: h5py.File) -> str:
    """Name of the only dataset that can be a frame."""
    own = [name for name in file if is_own(file, name) and isinstance(file[name], h5py.Dataset)]
    bounds = {text_of(file[name], "bounds") for name in own}
    found = [name for name in own if name not in bounds and not direction_of(file[name]) and _is_plane(file[name])]
    if len(found) != 1:
        names = f"{len(found)} ({', '.join(found[:5])})" if found else "none"
        raise InputError(f"{path}: {names} of the data sets in its root can be the frame; give the key variable.")
    return found[0]


def _is_plane(data: h5py.Dataset) -> bool:
    shape = data.shape or ()
    return data.dtype.kind in "uif" and len(shape) >= 2 and math.prod(shape[:-2]) == 1 and min(shape[-2:]) > 1


def _fills(file: h5py.File, data: h5py.Dataset, kind: np.dtype, declared: tuple[float, ...]) -> tuple[float, ...]:
    """Fill values: the declared one, or else that of NetCDF."""
    if declared or not ("DIMENSION_LIST" in data.attrs or "_NCProperties" in file.attrs):
        return declared
    return tuple(fill for name, fill in DEFAULT_FILLS.items() if name == kind.name)


def _invalid(stored: np.ndarray, data: h5py.Dataset, numbers: Callable) -> np.ndarray:
    """Mask of values outside the valid range.

    Minus infinity is 10 log10 of no rain, whatever the range.
    """
    keys = [key for key in ("valid_range", "valid_min", "valid_max") if key in data.attrs]
    limits = numbers("valid_range") or (*(numbers("valid_min") or (-np.inf,)), *(numbers("valid_max") or (np.inf,)))
    if len(limits) != 2:
        raise ValueError("its attributes valid_min, valid_max and valid_range are not two numbers")
    packed = data.dtype.kind in "iu" and ("scale_factor" in data.attrs or "add_offset" in data.attrs)
    if packed and keys and np.asarray(data.attrs[keys[0]]).dtype.kind == "f":  # these limits are in units
        scale, offset = number_of(data, "scale_factor"), number_of(data, "add_offset")
        stored = stored * np.float64(1 if scale is None else scale) + np.float64(offset or 0)
    return (stored > max(limits)) | ((stored < min(limits)) & ~np.isneginf(stored))


def _time(file: h5py.File) -> datetime | None:
    """Time of the frame, None if there is not one time."""
    for name in TIMES:
        if is_own(file, name) and isinstance(file[name], h5py.Dataset) and file[name].size == 1:
            data = own_dataset(file, name)
            with contextlib.suppress(ValueError, OverflowError):
                return moment(seconds_of(np.ravel(data[()]), text_of(data, "units"))[0])
    return None


def seconds_of(times: np.ndarray, units: str) -> np.ndarray:
    """Seconds since 1970 (UTC) of times by CF, such as minutes since 2023-05-01.

    Times that are not possible become `NEVER`. Raises ValueError for other units.
    """
    step, _, since = units.partition(" since ")
    begin = datetime.fromisoformat(since.strip().removesuffix("UTC").strip().replace("Z", "+00:00"))
    begin = begin if begin.tzinfo is None else begin.astimezone(timezone.utc).replace(tzinfo=None)
    if step.strip() not in STEPS:
        raise ValueError(f"its time is in {units}")
    found = np.rint(times.astype(np.float64) * STEPS[step.strip()] + seconds(begin))
    return np.where(np.abs(found) < 2**40, found, NEVER).astype(np.int64)


def _crs(file: h5py.File, data: h5py.Dataset) -> str | None:
    """WKT of the grid mapping, None without one."""
    name = text_of(data, "grid_mapping").strip("/")
    if not name or not is_own(file, name) or not has("pyproj") or len(file[name].attrs) > MAX_ATTRIBUTES:
        return None
    return wkt_of_cf(tuple((key, _value(file[name], key)) for key in sorted(file[name].attrs)))


def _value(mapping: h5py.HLObject, key: str) -> str | float | tuple[float, ...]:
    """Text, number or numbers of an attribute."""
    text = text_of(mapping, key, MAX_WKT)
    values = () if text else numbers_of(mapping, key)
    return text if text or not values else values[0] if len(values) == 1 else values
