"""Sequences as folders of grey PNG frames: `<sequence>/inputs/*.png` and optionally `<sequence>/targets/*.png`."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dataset.png import read_png
from dataset.sevir.reader import resize_bytes
from utils.errors import InputError


class Sequence(NamedTuple):
    """One sequence; frames are float32 `(T, 1, H, W)` in [0, 1]."""

    name: str
    inputs: Tensor
    targets: Tensor | None  # None: no frames of the future are given


def read_sequences(folder: str | Path, frames_in: int, frames_out: int, img_size: int) -> list[Sequence]:
    """Read the sequences in a folder, or a folder that is one.

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


def _read(folder: Path, at_least: int, used: slice, img_size: int) -> Tensor:
    paths = sorted(folder.glob("*.png"))
    if len(paths) < at_least:
        raise InputError(f"{folder} holds {len(paths)} PNG frames; the model needs {at_least}.")
    paths = paths[used]
    frames = [read_png(path) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if frame.dtype != np.uint8:
            raise InputError(f"{path} is not an 8-bit picture; save it as 8-bit grey.")
        if frame.shape != frames[0].shape or frame.shape[0] != frame.shape[1]:
            height, width = frame.shape
            raise InputError(
                f"{path} is {width} x {height} pixels; all frames of a sequence must be squares of one size."
            )
    return resize_bytes(np.stack(frames, axis=-1), img_size).float() / 255
