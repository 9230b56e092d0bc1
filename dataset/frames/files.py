"""A frame from a file of PNG, NPY, HDF5 or NetCDF-4.

No file is trusted. Sizes are checked before memory is used.
"""

import math
import tokenize
from pathlib import Path

import numpy as np

from dataset.frames.config import FramesConfig
from dataset.frames.readers.knmi import is_knmi, read_knmi
from dataset.frames.readers.netcdf import read_netcdf
from dataset.frames.readers.odim import is_odim, read_odim
from dataset.frames.values import Meaning, StoredFrame, agreed, physical
from dataset.hdf5 import open_hdf5, own_dataset, patiently, reason_of, refuse_bombs, refuse_endless_heaps
from dataset.png import read_png
from utils.errors import InputError

MAX_PIXELS = 2**26  # of a frame: 8192 x 8192
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
FAULTS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SyntaxError, OverflowError, EOFError)
FAULTS += (tokenize.TokenError,)  # which NumPy's reading of a header may end in


def read_frame(path: Path, config: FramesConfig) -> StoredFrame:
    """Read a frame in physical units.

    Dry pixels have the lowest value of the range, missing ones are NaN. Raises `InputError` that names the file if it
    is damaged, too large, not a single frame, or contradicts `frames.yaml`.
    """
    read = {".png": _read_png, ".npy": _read_npy}.get(config.pattern.suffix, _read_hdf5)
    try:
        with np.errstate(all="ignore"):  # absurd scales
            frame = patiently(lambda: read(path, config))
    except InputError:
        raise
    except FAULTS as error:
        raise InputError(f"{path} cannot be used ({reason_of(error, path)}); replace or remove it.") from None
    frame.values[np.isneginf(frame.values)] = config.range[0]
    return frame


def _read_png(path: Path, config: FramesConfig) -> StoredFrame:
    return physical(read_png(path, MAX_PIXELS), agreed(path, Meaning(), config))


def _read_npy(path: Path, config: FramesConfig) -> StoredFrame:
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in NPY_HEADERS:
            raise ValueError(f"NPY format {version[0]}.{version[1]} is not for plain arrays")
        shape, _, dtype = NPY_HEADERS[version](file)
        _check(shape, dtype)
        file.seek(0)
        stored = np.lib.format.read_array(file, allow_pickle=False)
    return physical(stored.reshape(stored.shape[-2:]), agreed(path, Meaning(), config))


def _read_hdf5(path: Path, config: FramesConfig) -> StoredFrame:
    with path.open("rb") as file:
        if file.read(3) == b"CDF":
            raise ValueError("it is NetCDF-3: convert it, for example with `nccopy -k nc4`")
    refuse_endless_heaps(path)
    with open_hdf5(path, arriving=True) as file:
        data = own_dataset(file, config.variable.strip("/"))
        _check(data.shape, data.dtype)
        refuse_bombs(data, [0] * data.ndim, data.shape)
        if is_odim(file):
            return read_odim(data, path, config)
        return read_knmi(data, path, config) if is_knmi(data) else read_netcdf(file, data, path, config)


def _check(shape: tuple[int, ...] | None, dtype: np.typing.DTypeLike) -> None:
    """Raise ValueError unless these are numbers of one frame of bearable size."""
    if np.dtype(dtype).kind not in "uif" or np.dtype(dtype).itemsize > 8:
        raise ValueError(f"its values are {dtype}, not plain numbers")
    if not shape or len(shape) < 2 or math.prod(shape[:-2]) != 1 or min(shape) < 1:
        raise ValueError(f"its shape {shape} is not that of one frame [height, width]")
    if math.prod(shape) > MAX_PIXELS:
        raise ValueError(f"its {shape[-2]} x {shape[-1]} pixels are more than {MAX_PIXELS}")
