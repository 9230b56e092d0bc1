"""Stored frames become the levels that a model sees."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.frames.archive.archive import archive_of
from dataset.frames.config import FramesConfig
from dataset.frames.values import StoredFrame
from dataset.source import FINE_LEVELS, Source
from utils.errors import InputError

MISSING = FINE_LEVELS + 1  # level of a pixel without valid data


@dataclass(frozen=True)
class Grid:
    """Frames of any size in a picture of another, shrunk and padded.

    All sizes are `(height, width)` in pixels. The shape of pixels never changes.
    """

    stored: tuple[int, int]  # of the files
    fitted: tuple[int, int]  # of the frames inside the picture
    size: tuple[int, int]  # of the picture

    @classmethod
    def fitting(cls, stored: tuple[int, int], size: tuple[int, int] | None) -> "Grid":
        """The grid from stored frames to pictures `(height, width)`, of the stored size if that is None."""
        size = size or stored
        if min(size) < 1:
            raise InputError(f"img_size {size[0]} x {size[1]} is not possible; use 1 pixel or more.")
        shrinking = min(1.0, size[0] / stored[0], size[1] / stored[1])
        return cls(tuple(stored), tuple(max(1, round(pixels * shrinking)) for pixels in stored), tuple(size))

    def pad(self, frames: Tensor) -> Tensor:
        """Frames `(..., *fitted)` with NaN around to `(..., *size)`."""
        (height, width), (full_height, full_width) = self.fitted, self.size
        return F.pad(frames, (0, full_width - width, 0, full_height - height), value=torch.nan)

    def crop(self, frames: Tensor) -> Tensor:
        """Pictures `(..., *size)`, such as a forecast, without their padding: `(..., *fitted)`."""
        return frames[..., : self.fitted[0], : self.fitted[1]]


@dataclass(frozen=True)
class Encoder:
    """Reads frames as integer levels; `level / levels` is in [0, 1].

    There are 255 levels if the first frame has bytes and all its values are exact levels, else `fine_levels`. A value
    that just reaches a threshold still does so as a level.
    """

    config: FramesConfig
    grid: Grid
    stored_type: str  # dtype of the values in the files
    levels: int  # 255, or `fine_levels`

    @classmethod
    def of(cls, config: FramesConfig, first: datetime, img_size: tuple[int, int] | None) -> "Encoder":
        """The encoder that fits the first frame of a folder.

        Raises `InputError` if that frame cannot be read.
        """
        frame = archive_of(config).read(first)
        grid = Grid.fitting(frame.values.shape, img_size)
        levels = 255 if _bytes_suffice(frame, config) else fine_levels(config)
        return cls(config, grid, frame.kind, levels)

    @property
    def source(self) -> Source:
        """What values of the pictures stand for."""
        return self.config.source(widening=self.grid.size[1] / self.grid.fitted[1])

    def encode(self, time: datetime) -> np.ndarray:
        """Read the levels of a frame, uint16 `grid.fitted`, `MISSING` where not valid.

        Shrinking is bilinear and antialiased. It weighs valid pixels only, and a pixel of the result is valid if more
        than half of its weight was. Means are taken of values in units. Raises `InputError` for a file that cannot be
        used, is unlike the first or holds no valid pixel.
        """
        archive = archive_of(self.config)
        frame, name = archive.read(time), archive.name_of(time)
        found = frame.values.shape, frame.kind
        if found != (self.grid.stored, self.stored_type):
            raise InputError(
                f"{name} has {found[0]} {found[1]} values, the first frame {self.grid.stored} {self.stored_type}; "
                "all frames of a folder must be alike."
            )
        values, valid = _shrink(_shares(frame.values, self.config), self.grid.fitted)
        if not valid.any():
            raise InputError(f"{name} has no valid pixel.")
        return np.where(valid, np.rint(self.source.frames(values) * self.levels), MISSING).astype("<u2")

    def values(self, levels: np.ndarray) -> np.ndarray:
        """Float32 values in [0, 1] of levels of any shape, NaN where not valid."""
        return np.where(levels == MISSING, np.float32(np.nan), levels.astype(np.float32) / np.float32(self.levels))

    def decode(self, levels: np.ndarray) -> Tensor:
        """Decode levels `(T, *grid.fitted)` to float32 frames `(T, 1, *grid.size)` in [0, 1], NaN where not valid."""
        return self.grid.pad(torch.from_numpy(self.values(levels))[:, None])


def fine_levels(config: FramesConfig) -> int:
    """The most levels below `MISSING` that hold every threshold exactly, or all.

    Otherwise rain of exactly 1 mm/h might count as less. The thresholds of a source with a transform lie on levels.
    """
    source = config.source(widening=1)
    if source.transform:
        return FINE_LEVELS
    steps, levels = np.array(source.steps), np.arange(FINE_LEVELS, 255, -1)[:, None]
    places = steps / source.scale * levels
    nearest = np.rint(places)
    values = np.float32(source.scale) * (nearest.astype(np.float32) / levels.astype(np.float32))
    fit = (np.abs(places - nearest) < 1e-6) & (values >= steps.astype(np.float32))
    return int(levels[fit.all(axis=1).argmax(), 0])


def _shares(values: np.ndarray, config: FramesConfig) -> np.ndarray:
    """Shares of the range in [0, 1], float32, of values in units; NaN where missing."""
    low, high = config.range
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)


def _bytes_suffice(frame: StoredFrame, config: FramesConfig) -> bool:
    if frame.kind != "uint8" or config.transform:
        return False
    levels = 255 * _shares(np.arange(256) * frame.metadata.scale + frame.metadata.offset, config)
    return bool(np.abs(levels - np.rint(levels)).max() < 1e-3)


def _shrink(values: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Values with zeros for NaN, and validity, both of the given size."""
    valid = ~np.isnan(values)
    values = np.where(valid, values, np.float32(0))
    if values.shape == size:
        return values, valid
    if valid.all():
        return _interpolate(values, size), np.ones(size, bool)
    weight = _interpolate(valid.astype(np.float32), size)
    valid = weight > 0.5
    shrunk = np.divide(_interpolate(values, size), weight, out=np.zeros(size, np.float32), where=valid)
    return np.clip(shrunk, 0, 1), valid


def _interpolate(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(torch.from_numpy(frame)[None, None], size, mode="bilinear", antialias=True)[0, 0].numpy()
