"""One frame from one file: PNG, NPY, HDF5 or NetCDF-4. No file is trusted: sizes are checked before memory is used."""

import math
import tokenize
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.frames_config import FramesConfig
from dataset.hdf5 import open_hdf5, own_dataset, patiently, reason_of, refuse_bombs
from utils.errors import InputError

MAX_PIXELS = 2**26  # of a frame: 8192 x 8192
GREY = ("L", "I;16", "I;16B", "I")
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
CF = ("scale_factor", "add_offset", "_FillValue", "missing_value")  # conventions of climate and forecast metadata
FAULTS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SyntaxError, OverflowError, EOFError)
FAULTS += (tokenize.TokenError,)  # which NumPy's reading of a header may end in


class StoredFrame(NamedTuple):
    """Values as a file holds them, `(H, W)`, and what they mean: `values * scale + offset` in units."""

    values: np.ndarray
    scale: float
    offset: float
    missing: tuple[float, ...]

    def physical(self) -> np.ndarray:
        """Values in units as float32 `(H, W)`, or float64 where float32 is too coarse; NaN where missing."""
        kind = np.result_type(self.values.dtype, np.float32)
        values = self.values.astype(kind)
        # rounded like the values, or else -9999.9 would not be found among float32
        lost = ~np.isfinite(values) | np.isin(values, np.array(self.missing, kind))
        values = values * kind.type(self.scale) + kind.type(self.offset)
        values[lost] = np.nan
        return values


def read_frame(path: Path, config: FramesConfig) -> StoredFrame:
    """Read one frame; raises `InputError` that names the file if it is damaged, too large or not a single frame."""
    read = {".png": _read_png, ".npy": _read_npy}.get(config.pattern.suffix, _read_hdf5)
    try:
        values, attributes = patiently(lambda: read(path, config.variable))
    except Image.DecompressionBombError:
        raise InputError(f"{path} cannot be used: it declares far more than {MAX_PIXELS} pixels.") from None
    except FAULTS as error:
        raise InputError(f"{path} cannot be used ({reason_of(error, path)}); replace or remove it.") from None
    return StoredFrame(
        values,
        attributes.get("scale_factor", (1.0,))[0] if config.scale is None else config.scale,
        attributes.get("add_offset", (0.0,))[0] if config.offset is None else config.offset,
        config.missing + attributes.get("_FillValue", ()) + attributes.get("missing_value", ()),
    )


def _read_png(path: Path, _) -> tuple[np.ndarray, dict]:
    with Image.open(path, formats=("PNG",)) as image:
        _check(image.size[::-1], "uint16")
        if image.mode in GREY:
            return np.array(image), {}
        if image.mode not in ("P", "RGB"):
            raise ValueError(f"its mode is {image.mode}: save it as 8- or 16-bit grey")
        bands = np.asarray(image.convert("RGB"))
    if (bands != bands[..., :1]).any():
        raise ValueError("it is coloured: save it as 8- or 16-bit grey")
    return bands[..., 0].copy(), {}


def _read_npy(path: Path, _) -> tuple[np.ndarray, dict]:
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in NPY_HEADERS:
            raise ValueError(f"NPY format {version[0]}.{version[1]} is not for plain arrays")
        shape, _, dtype = NPY_HEADERS[version](file)
        _check(shape, dtype)
        file.seek(0)
        return _frame_of(np.lib.format.read_array(file, allow_pickle=False)), {}


def _read_hdf5(path: Path, variable: str) -> tuple[np.ndarray, dict]:
    with path.open("rb") as file:
        if file.read(3) == b"CDF":
            raise ValueError("it is NetCDF-3: convert it, for example with `nccopy -k nc4`")
    with open_hdf5(path, arriving=True) as file:
        data = own_dataset(file, variable.strip("/"))
        _check(data.shape, data.dtype)
        refuse_bombs(data, [0] * data.ndim, data.shape)
        attributes = {key: data.attrs[key] for key in data.attrs if key in CF}
        return _frame_of(data[()]), {key: _numbers(key, value) for key, value in attributes.items()}


def _numbers(key: str, value: object) -> tuple[float, ...]:
    numbers = np.asarray(value)
    several = numbers.size > 1 and key != "missing_value"
    if numbers.dtype.kind not in "uif" or not numbers.size or several:
        raise ValueError(f"its attribute {key} is not one number")
    return tuple(numbers.astype(np.float64).ravel().tolist())


def _check(shape: tuple[int, ...] | None, dtype: np.typing.DTypeLike) -> None:
    """Raise ValueError unless these are numbers of one frame of bearable size."""
    if np.dtype(dtype).kind not in "uif" or np.dtype(dtype).itemsize > 8:
        raise ValueError(f"its values are {dtype}, not plain numbers")
    if not shape or len(shape) < 2 or math.prod(shape[:-2]) != 1 or min(shape) < 1:
        raise ValueError(f"its shape {shape} is not that of one frame [height, width]")
    if math.prod(shape) > MAX_PIXELS:
        raise ValueError(f"its {shape[-2]} x {shape[-1]} pixels are more than {MAX_PIXELS}")


def _frame_of(values: np.ndarray) -> np.ndarray:
    return values.reshape(values.shape[-2:])
