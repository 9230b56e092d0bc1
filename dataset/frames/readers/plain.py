"""Frames in PNG and NPY, which say nothing about their values."""

import threading
from pathlib import Path

import numpy as np

from dataset.frames.readers.limits import MAX_PIXELS, check_frame
from dataset.frames.values import Metadata
from dataset.png import read_png

NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
PARSING = threading.Lock()  # NumPy parses headers by `ast`, which raises SystemError in threads of some Python 3.11


def read_png_frame(path: Path, variable: None) -> tuple[np.ndarray, Metadata]:
    """Read grey levels `(H, W)`."""
    return read_png(path, MAX_PIXELS), Metadata()


def read_npy(path: Path, variable: None) -> tuple[np.ndarray, Metadata]:
    """Read an array `(H, W)` that was not pickled."""
    with PARSING, open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in NPY_HEADERS:
            raise ValueError(f"NPY format {version[0]}.{version[1]} is not for plain arrays")
        shape, _, dtype = NPY_HEADERS[version](file)
        check_frame(shape, dtype)
        file.seek(0)
        stored = np.lib.format.read_array(file, allow_pickle=False)
    return stored.reshape(stored.shape[-2:]), Metadata()
