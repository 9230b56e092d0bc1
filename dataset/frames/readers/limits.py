"""The largest frame that a reader accepts."""

import math

import numpy as np

MAX_PIXELS = 2**26  # of a frame: 8192 x 8192
MAX_BYTES = 8 * MAX_PIXELS  # of a file without compression


def check_frame(shape: tuple[int, ...] | None, dtype: np.typing.DTypeLike) -> None:
    """Raise ValueError unless these are numbers of one frame of bearable size."""
    if np.dtype(dtype).kind not in "uif" or np.dtype(dtype).itemsize > 8:
        raise ValueError(f"its values are {dtype}, not plain numbers")
    if not shape or len(shape) < 2 or math.prod(shape[:-2]) != 1 or min(shape) < 1:
        raise ValueError(f"its shape {shape} is not that of one frame [height, width]")
    if math.prod(shape) > MAX_PIXELS:
        raise ValueError(f"its {shape[-2]} x {shape[-1]} pixels are more than {MAX_PIXELS}")
