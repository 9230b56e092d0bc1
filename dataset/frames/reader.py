"""Anybody's radar: a folder of PNG, NPY, NetCDF-4 or HDF5 frames with a time in each name.

    data/my_radar/frames.yaml
    data/my_radar/2023/05/01/radar_202305010000.png ...

`frames.yaml` says how names, values and dates are to be read (`resources/frames_example.yaml`). All times are UTC.
"""

import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dataset.checking import TELLING
from dataset.exclusions import exclusions_path, read_exclusions
from dataset.frames.cache import Cache, open_cache
from dataset.frames.config import FramesConfig, read_config
from dataset.frames.encoding import Encoder, Grid
from dataset.frames.names import frame_id, moment, on_marks, seconds, times_of
from dataset.sequences import SPLITS, Sequences, check_split
from dataset.source import Source
from utils.errors import InputError

logger = logging.getLogger(__name__)


class Runs(NamedTuple):
    """Frames in a row: `order` lists them run after run, a run begins at each of `begins` and has `lengths` frames."""

    order: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray
    gaps: int  # places where frames are missing
    missing: int  # frames missing there

    @classmethod
    def of(cls, times: np.ndarray, interval: int) -> "Runs":
        """The longest runs of frames exactly `interval` apart; `times` and `interval` in seconds.

        Frames between, as in an archive of 5 minutes read every 10, make runs of their own.
        """
        order = np.lexsort((times, times % interval))
        ordered = times[order]
        step = np.diff(ordered)
        begins = np.flatnonzero(np.concatenate([[True], step != interval]))[: len(times)]
        lost = step[(step > interval) & (step % interval == 0)] // interval - 1
        return cls(order, begins, np.diff(np.append(begins, len(times))), len(lost), int(lost.sum()))

    def windows(self, length: int, stride: int) -> np.ndarray:
        """Positions in `order` at which windows of `length` frames begin, `stride` frames apart within a run."""
        place = np.arange(len(self.order)) - np.repeat(self.begins, self.lengths)
        left = np.repeat(self.lengths, self.lengths) - place
        return np.flatnonzero((place % stride == 0) & (left >= length))


class Frames(Sequences):
    """Sequences of frames without a gap from one split of a folder.

    A sequence lies within one split from its first to its last frame. `event_ids` are the beginnings of the runs that
    give sequences. Made by `open_frames`; raises `InputError` if the split has no sequence.
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
        self.source = _source(config, cache.encoder.grid)
        self.frames = np.flatnonzero(split_numbers(cache.times, config) == SPLITS.index(split))
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
        logger.info("%s, %s: %s", config.folder, split, self.describe())

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        first = self._first(index)
        return self.cache.read(self.frames[self.runs.order[first : first + self.seq_len]])

    def sequence_id(self, index: int) -> str:
        """Time of a sequence's first frame, as in 20230501T000000."""
        return self._name(self._first(index))

    def event_of(self, index: int) -> str:
        """Day of a sequence's first frame: sequences of a day overlap, or see the same weather."""
        return self.sequence_id(index)[:8]

    def crop(self, frames: Tensor) -> Tensor:
        """Frames `(..., H, W)` without the padding that brought them to the size of the picture."""
        return self.cache.encoder.grid.crop(frames)

    def describe(self) -> str:
        """Numbers of frames, runs, sequences, gaps and unusable files, in one line."""
        return (
            f"{len(self.frames)} frames in {len(self.runs.begins)} runs, {len(self)} sequences, {self.runs.gaps} gaps "
            f"({self.runs.missing} frames missing), {self.cache.unusable} unusable files and {self.cache.excluded} "
            "excluded ones in all splits"
        )

    def _first(self, index: int) -> int:
        return self.windows[self.checked(index)]

    def _name(self, position: int) -> str:
        return frame_id(self.cache.times[self.frames[self.runs.order[position]]])


def open_frames(
    split: str,  # train, valid or test
    data_path: str | Path,  # folder that holds frames.yaml, or such a file
    img_size: int | tuple[int, int],  # pixels, or height and width
    seq_len: int,  # frames
    stride: int | None = None,  # frames between sequences; None: that of frames.yaml
    packed_path: str | Path | None = None,  # folder for the cache; None: <folder>/packed
) -> Frames:
    """Open one split of a folder; frames that are not in its cache yet are decoded first.

    Raises `InputError` for mistakes in `frames.yaml`, unusable frames, wrong options, or a split without sequences.
    """
    check_split(split)
    for name, value in (("seq_len", seq_len), ("stride", stride)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value} is not possible; use 1 frame or more.")
    config = read_config(data_path)
    if config.split is None:
        raise InputError(f"{config.file} lacks the key split, which says {{valid_from: DATE, test_from: DATE}}.")
    return Frames(open_cache(config, img_size, packed_path), config, split, seq_len, stride or config.stride)


class Latest(NamedTuple):
    """The newest frames of a folder, and where they lie in the picture."""

    frames: Tensor  # float32 (T, 1, H, W) in [0, 1], NaN where nothing is known
    times: tuple[datetime, ...]  # naive, UTC
    grid: Grid  # `grid.crop` takes the padding from a forecast
    source: Source
    early: int  # number of frames that were left out because the clock says that they are of the future
    copies: tuple[datetime, ...]  # times of frames with echo that are no different from the one before


def latest(
    path: str | Path | FramesConfig,  # folder that holds frames.yaml, such a file, or what it says
    frames_in: int,  # frames
    img_size: int | tuple[int, int],  # pixels, or height and width
    now: datetime | None = None,  # UTC if naive; None: the clock's
    max_age: float = 3,  # intervals
) -> Latest:
    """Read the newest `frames_in` frames, equal to what training would see of them.

    Excluded frames, and those dated more than one interval after `now`, are left out. Raises `InputError` if the newest
    frame is older than `max_age` intervals, one of the others is missing, one cannot be used, or all are the same.
    """
    config = path if isinstance(path, FramesConfig) else read_config(path)
    live, now = now is None, now or datetime.now(timezone.utc)
    now = now if now.tzinfo is None else now.astimezone(timezone.utc).replace(tzinfo=None)
    names, early = _newest(config, frames_in, now, max_age)
    times = tuple(names)
    encoder = Encoder.of(config, names[times[0]], img_size)
    encoded = [encoder.encode(name) for name in names.values()]
    frames = encoder.decode(*(np.stack(part) for part in zip(*encoded, strict=True)))
    source = _source(config, encoder.grid)
    copies = _copies(frames, times, source)
    if copies and copies == times[1:]:
        raise InputError(
            f"the newest {frames_in} frames in {config.folder}, up to {times[-1]:%Y-%m-%d %H:%M} UTC, are all the "
            "same; see whether the radar is stuck."
        )
    return Latest(frames, times, encoder.grid, source, early if live else 0, copies)


def _newest(config: FramesConfig, frames_in: int, now: datetime, max_age: float) -> tuple[dict, int]:
    """The newest frames in a row, as nominal times with those in the names, and how many are of the future.

    The oldest comes first. Messages do not tell how old a frame is: a watch repeats those that change.
    """
    interval = timedelta(minutes=config.interval)
    try:
        listed = np.array(sorted(seconds(time) for time, _ in config.pattern.walk(config.folder)), np.int64)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or config.folder}: {error.strerror}.") from None
    if not len(listed):
        raise InputError(f"{config.folder} holds no frame like {config.pattern.text}; correct pattern or folder.")
    found = listed[listed <= seconds(now + interval)]
    excluded = np.isin(found, times_of(read_exclusions(config.file)))
    marks, counts = on_marks(found, excluded, round(60 * config.interval), config.tolerance)
    names = dict(zip(map(moment, marks[counts]), map(moment, found[counts]), strict=True))
    newest = max(names, default=None)
    if newest is None:
        raise InputError(f"{config.folder} holds no frame like {config.pattern.text} until {now:%Y-%m-%d %H:%M} UTC.")
    if now - newest > max_age * interval:
        raise InputError(
            f"the newest frame in {config.folder} is of {newest:%Y-%m-%d %H:%M} UTC, which is more than {max_age:g} "
            f"intervals ({max_age * config.interval:g} minutes) ago; see whether frames arrive, named in UTC."
        )
    times = tuple(newest - n * interval for n in reversed(range(frames_in)))
    gap = next((time for time in times if time not in names), None)
    if gap is not None:
        why = f"excluded by {exclusions_path(config.file)}" if seconds(gap) in marks[excluded] else "missing"
        raise InputError(
            f"{config.folder / config.pattern.name_of(gap)} is {why}: a forecast from {newest:%Y-%m-%d %H:%M} UTC "
            f"needs the last {frames_in} frames without a gap."
        )
    return {time: names[time] for time in times}, len(listed) - len(found)


def _spacing(times: np.ndarray) -> str:
    """How far apart frames are, most of them; `times` in seconds."""
    if len(times) < 2:
        return ""
    low, high = (f"{minutes:.3g}" for minutes in np.quantile(np.diff(times) / 60, (0.1, 0.9)))
    return f", their spacing {low if low == high else f'{low} to {high}'} minutes"


def _copies(frames: Tensor, times: tuple[datetime, ...], source: Source) -> tuple[datetime, ...]:
    """Times of the frames `(T, 1, H, W)` with echo that are no different from the one before."""
    telling = (source.scale * frames >= source.steps[0]).sum(dim=(1, 2, 3)) >= TELLING
    stored = frames.nan_to_num(nan=0.0)
    same = (stored[1:] == stored[:-1]).flatten(1).all(dim=1)
    return tuple(time for time, copy in zip(times[1:], (telling[1:] & same).tolist(), strict=True) if copy)


def _source(config: FramesConfig, grid: Grid) -> Source:
    return config.source(grid.size[1] / grid.fitted[1])


def split_numbers(times: np.ndarray, config: FramesConfig) -> np.ndarray:
    """Place in SPLITS of the split that each frame belongs to; `times` in seconds since 1970."""
    return np.searchsorted([seconds(begin) for begin in config.split], times, "right")
