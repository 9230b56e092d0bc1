"""Sequences as folders of grey PNG frames: `<sequence>/inputs/*.png` and, if known, `<sequence>/targets/*.png`.

A frame is a regular file of at most MAX_BYTES in PNG format, MAX_SIDE pixels or less a side; reading one takes less
than 100 MB, whatever the file declares.
"""

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dataset.hdf5 import patiently, reason_of
from dataset.sevir.reader import MAX_SIDE, resize_bytes
from utils.errors import InputError

MAX_BYTES = 2**25  # twice an uncompressed RGBA frame of MAX_SIDE
PNG_ERRORS = (OSError, Image.DecompressionBombError, SyntaxError, ValueError)


class Sequence(NamedTuple):
    """One sequence; frames are float32 `(T, 1, H, W)` in [0, 1]."""

    name: str
    inputs: Tensor
    targets: Tensor | None  # None: the future is not known


def read_sequences(folder: str | Path, frames_in: int, frames_out: int, img_size: int) -> list[Sequence]:
    """All sequences in a folder, by name, or the one that the folder is, resized to `img_size`.

    The last `frames_in` inputs and the first `frames_out` targets of each are used. Raises `InputError` if there is no
    sequence, one has fewer frames than that, or a frame is not a square 8-bit grey PNG of the sequence's size.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        fault = "is no folder" if os.path.lexists(folder) else "does not exist"
        raise InputError(f"{folder} {fault}; pass a folder of sequences, or one sequence.")
    found = sorted(path.parent for path in folder.glob("*/inputs") if path.is_dir())
    if os.path.isdir(folder / "inputs"):
        found = [folder.resolve()]
    if not found:
        raise InputError(f"{folder} holds no sequence; expected folders <sequence>/inputs/ with PNG frames.")
    return [
        Sequence(
            path.name,
            _read(path / "inputs", frames_in, slice(-frames_in, None), img_size),
            _read(path / "targets", frames_out, slice(frames_out), img_size) if (path / "targets").is_dir() else None,
        )
        for path in found
    ]


def write_sequence(folder: Path, inputs: np.ndarray, targets: np.ndarray) -> None:
    """Write uint8 frames `(T, H, W)` in the layout that `read_sequences` reads."""
    for name, frames in (("inputs", inputs), ("targets", targets)):
        (folder / name).mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / name / f"{number:02d}.png", optimize=True)


def _read(folder: Path, at_least: int, used: slice, img_size: int) -> Tensor:
    paths = sorted(folder.glob("*.png"))
    if len(paths) < at_least:
        raise InputError(f"{folder} holds {len(paths)} PNG frames; the model needs {at_least}.")
    paths = paths[used]
    frames = [_read_frame(path) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if frame.shape != frames[0].shape or frame.shape[0] != frame.shape[1]:
            height, width = frame.shape
            raise InputError(
                f"{path} is {width} x {height} pixels; all frames of a sequence must be squares of one size."
            )
    return resize_bytes(np.stack(frames, axis=-1), img_size).float() / 255


def _read_frame(path: Path) -> np.ndarray:
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is no frame: it is no regular file, or has more than {MAX_BYTES} bytes.")
        bands = patiently(lambda: _decode(path))
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path} cannot be read as a PNG picture: it is none, or its header is damaged.") from None
    except PNG_ERRORS as error:
        raise InputError(f"{path} cannot be read as a PNG picture: {reason_of(error, path)}.") from None
    if (bands != bands[..., :1]).any():
        raise InputError(f"{path} is coloured; frames must be grey, their bytes the values of the radar product.")
    return bands[..., 0]


def _decode(path: Path) -> np.ndarray:
    """Pixels of a PNG file, uint8 `(H, W, 3)`."""
    # from memory, because a file would be asked for as much as a chunk declares; other formats may run programs
    with Image.open(io.BytesIO(path.read_bytes()), formats=["PNG"]) as image:
        # of bands of 16 bits Pillow keeps 8
        if image.mode not in ("1", "L", "P", "RGB", "RGBA") or any("16" in tile[3] for tile in image.tile):
            raise InputError(f"{path} is not an 8-bit picture (its mode is {image.mode}).")
        if max(image.size) > MAX_SIDE:
            raise InputError(f"{path} is {image.size[0]} x {image.size[1]} pixels; use at most {MAX_SIDE} a side.")
        return np.asarray(image.convert("RGB"))
