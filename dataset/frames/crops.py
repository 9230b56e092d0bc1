"""Crops of frames at native resolution: fixed tiles, and random ones that prefer rain.

A crop is a square of complete blocks of pixels (`dataset.frames.cache.days.BLOCK`) in the frames of a window. The
probability of a random crop is proportional to a weighted sum of its pixels, which the counts of the cache give without
reading frames. Importance sampling of radar crops: Ravuri et al. 2021, Nature 597, 672-677, Methods.
"""

import logging
from dataclasses import replace
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from tqdm import tqdm

from dataset.frames.cache.cache import Cache, open_cache
from dataset.frames.cache.days import BLOCK
from dataset.frames.config import FramesConfig
from dataset.frames.reader import Frames, checked_config
from utils.errors import InputError

LOG = logging.getLogger(__name__)

# Weight of a valid pixel, and what a wet one weighs more.
WEIGHTS = {"rain": (0.02, 1.0), "uniform": (1.0, 0.0)}
TOGETHER = 288  # frames whose counts are in memory at once


class Crops(Frames):
    """Crops of sequences of frames, float32 `(seq_len, 1, crop, crop)`.

    Items `0 <= index < len(self)` are the tiles that cover the frames, of one window after the other. `order` draws
    random crops, which have the indices after them. A crop that reaches beyond the frames is padded with NaN. Tiles
    without a valid pixel in the archive are left out.
    """

    def __init__(
        self,
        cache: Cache,
        config: FramesConfig,
        split: str,  # train, valid or test
        seq_len: int,  # frames
        stride: int,  # frames
        crop: int,  # pixels of the side
        crop_by: str,  # a key of WEIGHTS
    ):
        self.side, self.crop_by = crop // BLOCK, crop_by
        self.blocks = tuple(max(blocks, self.side) for blocks in cache.seen.shape)
        self.lattice = tuple(blocks - self.side + 1 for blocks in self.blocks)  # rows and columns of random crops
        self.tiles = self._tiles(cache.seen)
        super().__init__(cache, config, split, seq_len, stride)
        self.source = replace(self.source, extent=self.source.extent * crop / cache.encoder.grid.size[1])

    def __len__(self) -> int:
        return len(self.windows) * len(self.tiles)

    def __getitem__(self, index: int) -> Tensor:
        return self._read(*self.region(index))

    def region(self, index: int) -> tuple[np.ndarray, range, range]:
        """Numbers of a crop's frames in the cache, and its rows and columns of blocks."""
        window, *corner = self.place(index)
        return self._frames(window), *(range(first, first + self.side) for first in corner)

    def place(self, index: int) -> tuple[int, int, int]:
        """Window of a crop, and the row and column of its first block."""
        drawn = index - len(self)
        if drawn < 0:
            window, tile = divmod(self.checked(index), len(self.tiles))
            return window, *map(int, self.tiles[tile])
        window, position = divmod(drawn, prod(self.lattice))
        if window >= len(self.windows):
            raise IndexError(f"there is no crop {index}")
        return window, *divmod(position, self.lattice[1])

    def sequence_id(self, index: int) -> str:
        """Time of a crop's first frame and the pixel of its upper left corner, as in 20230501T000000_y128_x0."""
        _, row, column = self.place(index)
        return f"{super().sequence_id(index)}_y{BLOCK * row}_x{BLOCK * column}"

    def part_of(self, index: int) -> tuple[int, tuple[slice, slice]]:
        """Window of a crop, and its rows and columns in the complete frames."""
        window, *corner = self.place(index)
        return window, tuple(slice(BLOCK * first, BLOCK * (first + self.side)) for first in corner)

    def map_frames(self, number: int) -> Tensor:
        """The complete frames of a window, padded to blocks."""
        return self._read(self._frames(number), *map(range, self.blocks))

    def describe(self) -> str:
        """Numbers of tiles and sequences, in one line."""
        return f"{super().describe()}, {len(self.tiles)} tiles of {BLOCK * self.side} pixels each"

    def order(self, seed: int, epoch: int) -> "Draws":
        """Random crops of an epoch, as many as tiles; they are drawn with replacement."""
        return Draws(self, seed, epoch)

    def draw(self, first: float, second: float) -> int:
        """Index of the random crop that two numbers in [0, 1) choose: its window, then its position there."""
        window = _choose(self._cumulative, first)
        position = _choose(self._weights(window).ravel().cumsum(), second)
        return len(self) + window * prod(self.lattice) + position

    def probability(self, index: int) -> float:
        """Probability that a draw is the random crop with an index."""
        window, row, column = self.place(index)
        return float(self._weights(window)[row, column] / self._cumulative[-1])

    @cached_property
    def _cumulative(self) -> np.ndarray:
        """Cumulative weights of the windows, each the sum over its random crops."""
        frames = np.concatenate([[0], self._frame_weights()[self.runs.order].cumsum()])
        windows = frames[self.windows + self.seq_len] - frames[self.windows]
        valid, wet = WEIGHTS[self.crop_by]
        draws = len(self) / windows.sum()
        LOG.info(
            "random crops have probabilities in proportion to %g per valid pixel and %g more from %g %s on: an "
            "epoch of %d draws takes about %.2g from the driest sequence and %.2g from the wettest",
            *(valid, wet, self.source.thresholds[0], self.source.units),
            *(len(self), draws * windows.min(), draws * windows.max()),
        )
        return windows.cumsum()

    def _frame_weights(self) -> np.ndarray:
        """Weight of each frame of the split, summed over random crops."""
        covered = np.outer(*(_covered(*sizes) for sizes in zip(self.cache.seen.shape, self.lattice, strict=True)))
        weights = np.multiply.outer(WEIGHTS[self.crop_by], covered).ravel()
        parts = range(0, len(self.frames), TOGETHER)
        counts = (self.cache.counts(self.frames[start : start + TOGETHER]) for start in parts)
        bar = tqdm(counts, "weighing", len(parts), unit="part", disable=None, delay=3)
        return np.concatenate([one.reshape(len(one), -1) @ weights for one in bar])

    def _weights(self, window: int) -> np.ndarray:
        """Weights of the random crops of a window, as an array of the lattice."""
        counts = self.cache.counts(self._frames(window)).sum(axis=0, dtype=np.int64)
        margins = [(0, 0), *((0, size - own) for size, own in zip(self.blocks, self.cache.seen.shape, strict=True))]
        sums = sliding_window_view(np.pad(counts, margins), (self.side, self.side), (1, 2)).sum((-2, -1))
        return np.tensordot(WEIGHTS[self.crop_by], sums, 1)

    def _read(self, frames: np.ndarray, rows: range, columns: range) -> Tensor:
        asked, limits = (rows, columns), self.cache.seen.shape
        stored = [range(one.start, min(one.stop, limit)) for one, limit in zip(asked, limits, strict=True)]
        below, right = (BLOCK * (len(one) - len(own)) for one, own in zip(asked, stored, strict=True))
        read = self.cache.read_blocks(frames, *stored)
        return F.pad(read, (0, right, 0, below), value=torch.nan) if below or right else read

    def _first(self, index: int) -> int:
        return self.windows[self.place(index)[0]]

    def _tiles(self, seen: np.ndarray) -> np.ndarray:
        """First rows and columns of the tiles, in blocks."""
        corners = product(*(_starts(blocks, self.side).tolist() for blocks in self.blocks))
        return np.array([(r, c) for r, c in corners if seen[r : r + self.side, c : c + self.side].any()])


def open_crops(
    split: str,  # train, valid or test
    data_path: str | Path,  # folder that holds frames.yaml, or such a file
    crop: int,  # pixels of the side
    seq_len: int,  # frames
    stride: int | None = None,  # frames between sequences; None: that of frames.yaml
    packed_path: str | Path | None = None,  # folder for the cache; None: <folder>/packed
    crop_by: str = "rain",  # or uniform
) -> Crops:
    """Open crops of one split of a folder and decode its new frames.

    Raises `InputError` as `open_frames` does.
    """
    if crop % BLOCK or crop < BLOCK:
        raise InputError(f"crop {crop} is not possible; use a multiple of {BLOCK} pixels.")
    config = checked_config(split, data_path, seq_len, stride)
    cache = open_cache(config, None, packed_path)
    return Crops(cache, config, split, seq_len, stride or config.stride, crop, crop_by)


class Draws:
    """Indices of the random crops of an epoch, drawn when asked for.

    Each depends on the seed, the epoch and its place in the order alone.
    """

    def __init__(self, crops: Crops, seed: int, epoch: int):
        self.crops, self.keys = crops, (seed, epoch)

    def __getitem__(self, places: slice) -> np.ndarray:
        numbers = range(*places.indices(len(self.crops)))
        return np.array([self.crops.draw(*np.random.default_rng([*self.keys, one]).random(2)) for one in numbers], int)


def _starts(blocks: int, side: int) -> np.ndarray:
    """First blocks of the fewest tiles that cover blocks, evenly spaced."""
    number = -(-blocks // side)
    return np.arange(number) * (blocks - side) // max(1, number - 1)


def _covered(blocks: int, crops: int) -> np.ndarray:
    """Number of random crops, along an axis, that cover each block."""
    side = max(blocks, crops) - crops + 1
    place = np.arange(blocks)
    return np.minimum(place, crops - 1) - np.maximum(place - side + 1, 0) + 1


def _choose(cumulative: np.ndarray, number: float) -> int:
    """Place that a number in [0, 1) chooses in proportion to weights, never one without weight."""
    found = np.searchsorted(cumulative, number * cumulative[-1], "right")
    return int(min(found, np.searchsorted(cumulative, cumulative[-1])))
