"""Own radar data: a folder of frames with times in their names.

    data/my_radar/frames.yaml
    data/my_radar/2023/05/01/radar_202305010000.png ...

`frames.yaml` says how names, values and dates are to be read (`resources/frames_example.yaml`). All times are UTC.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dataset.frames.archive.names import frame_id, moment
from dataset.frames.cache.cache import Cache, open_cache
from dataset.frames.complete import complete_config
from dataset.frames.config import FramesConfig, meaning_of
from dataset.frames.splits import DAY, shared_days
from dataset.sequences import SPLITS, Sequences, check_split
from utils.errors import InputError

LOG = logging.getLogger(__name__)


class Runs(NamedTuple):
    """Runs of frames without a missing one."""

    order: np.ndarray  # numbers of the frames, run after run
    begins: np.ndarray  # positions in `order` at which runs begin
    lengths: np.ndarray  # frames of each run
    gaps: int  # places where frames are missing
    missing: int  # frames missing there

    @classmethod
    def of(cls, times: np.ndarray, interval: int) -> "Runs":
        """Find the longest runs of frames exactly `interval` seconds apart.

        Frames between, as in an archive of 5 minutes read every 10, make runs of their own.
        """
        order = np.lexsort((times, times % interval))
        ordered = times[order]
        step = np.diff(ordered)
        begins = np.flatnonzero(np.concatenate([[True], step != interval]))[: len(times)]
        lost = step[(step > interval) & (step % interval == 0)] // interval - 1
        return cls(order, begins, np.diff(np.append(begins, len(times))), len(lost), int(lost.sum()))

    def windows(self, length: int, stride: int) -> np.ndarray:
        """Positions in `order` where windows begin, every `stride` frames of runs."""
        place = np.arange(len(self.order)) - np.repeat(self.begins, self.lengths)
        left = np.repeat(self.lengths, self.lengths) - place
        return np.flatnonzero((place % stride == 0) & (left >= length))


class Frames(Sequences):
    """Sequences of frames without a gap from one split of a folder.

    A sequence lies within one split from its first to its last frame. `event_ids` are the beginnings of the runs that
    give sequences. `open_frames` makes it. Raises `InputError` if the split has no sequence.
    """

    def __init__(
        self,
        cache: Cache,
        config: FramesConfig,
        split: str,  # train, valid or test
        seq_len: int,  # frames
        stride: int,  # frames
    ):
        self.cache, self.seq_len, self.stride = cache, seq_len, stride
        self.source = cache.encoder.source
        self.frames = np.flatnonzero(config.split.numbers(cache.times) == SPLITS.index(split))
        self.runs = Runs.of(cache.times[self.frames], round(config.interval * 60))
        self.windows = self.runs.windows(seq_len, stride)
        if not len(self.windows):
            raise InputError(
                f"{config.folder} has no {seq_len} frames in a row, {config.interval:g} minutes apart, in the {split} "
                f"split ({len(self.frames)} frames, at most {max(self.runs.lengths, default=0)} in a row"
                f"{_spacing(cache.times[self.frames])}); correct interval, tolerance or split in {config.file}."
            )
        run_of_window = np.searchsorted(self.runs.begins, self.windows, "right") - 1
        self.event_ids = [self._name(begin) for begin in self.runs.begins[np.unique(run_of_window)]]
        LOG.info("%s, %s: %s", config.folder, split, self.describe())
        if split == SPLITS[0]:
            warn_of_shared_days(config, cache.times)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        return self.cache.read(self._frames(self.checked(index)))

    def sequence_id(self, index: int) -> str:
        """Time of a sequence's first frame, as in 20230501T000000."""
        return self._name(self._first(index))

    def event_of(self, index: int) -> str:
        """Day of a sequence's first frame, which has similar weather."""
        return self.sequence_id(index)[:8]

    def crop(self, frames: Tensor) -> Tensor:
        """Crop frames `(..., H, W)` to the part without padding."""
        return self.cache.encoder.grid.crop(frames)

    def describe(self) -> str:
        """Numbers of frames, runs, sequences, gaps and unusable files, in one line."""
        return (
            f"{len(self.frames)} frames in {len(self.runs.begins)} runs, {len(self)} sequences, {self.runs.gaps} gaps "
            f"({self.runs.missing} frames missing), {self.cache.unusable} unusable files and {self.cache.excluded} "
            "excluded ones in all splits"
        )

    def _frames(self, window: int) -> np.ndarray:
        """Numbers of a window's frames in the cache."""
        first = self.windows[window]
        return self.frames[self.runs.order[first : first + self.seq_len]]

    def _first(self, index: int) -> int:
        return self.windows[self.checked(index)]

    def _name(self, position: int) -> str:
        return frame_id(self.cache.times[self.frames[self.runs.order[position]]])


def open_frames(
    split: str,  # train, valid or test
    data_path: str | Path,  # folder that holds frames.yaml, or such a file
    img_size: tuple[int, int],  # height and width in pixels
    seq_len: int,  # frames
    stride: int | None = None,  # frames between sequences; None: that of frames.yaml
    packed_path: str | Path | None = None,  # folder for the cache; None: <folder>/packed
) -> Frames:
    """Open one split of a folder and decode its new frames.

    Raises `InputError` for mistakes in `frames.yaml`, unusable frames, wrong options, or a split without sequences.
    """
    config = checked_config(split, data_path, seq_len, stride)
    return Frames(open_cache(config, img_size, packed_path), config, split, seq_len, stride or config.stride)


def checked_config(split: str, data_path: str | Path, seq_len: int, stride: int | None) -> FramesConfig:
    """Read `frames.yaml` for a split.

    Raises `InputError` for mistakes in it and for wrong options.
    """
    check_split(split)
    for name, value in (("seq_len", seq_len), ("stride", stride)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value} is not possible; use 1 frame or more.")
    config = complete_config(data_path)
    if config.split is None:
        raise InputError(f"{config.file} lacks the key split, which says {meaning_of('split')}.")
    return config


def _spacing(times: np.ndarray) -> str:
    """How far apart most frames are; `times` in seconds."""
    if len(times) < 2:
        return ""
    low, high = (f"{minutes:.3g}" for minutes in np.quantile(np.diff(times) / 60, (0.1, 0.9)))
    return f", their spacing {low if low == high else f'{low} to {high}'} minutes"


def warn_of_shared_days(config: FramesConfig, times: np.ndarray) -> None:
    """Warn if a day has frames of several splits; `times` in seconds since 1970."""
    days = shared_days(config.split, times)
    if len(days):
        LOG.warning(
            "%d day(s) have frames of several splits, such as %s, whose weather is alike, so that scores are too good; "
            "split at midnight UTC or by days in %s",
            *(len(days), f"{moment(days[0] * DAY):%Y-%m-%d}", config.file),
        )
