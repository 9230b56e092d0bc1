"""The newest frames of a folder, for operational forecasts."""

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dataset.checking import DISTINCT
from dataset.exclusions import exclusions_path, read_exclusions
from dataset.frames.archive.archive import archive_of
from dataset.frames.archive.names import moment, on_marks, seconds, times_of
from dataset.frames.cache.encoding import Encoder, Grid
from dataset.frames.complete import complete_config
from dataset.frames.config import FramesConfig
from dataset.frames.georeference import Georeference
from dataset.source import Source
from utils.errors import InputError


class Latest(NamedTuple):
    """The newest frames of a folder and their grid."""

    frames: Tensor  # float32 (T, 1, H, W) in [0, 1], NaN where no data is valid
    times: tuple[datetime, ...]  # naive, UTC
    grid: Grid  # `grid.crop` takes the padding from a forecast
    source: Source
    early: int  # number of frames that were left out because the clock says that they are of the future
    copies: tuple[datetime, ...]  # times of frames with echo that are no different from the one before
    georeference: Georeference | None  # coordinates of the pixels without padding
    credits: Mapping[str, str]  # what the newest file says about its origin, by names of ACDD


def latest(
    path: str | Path | FramesConfig,  # folder that holds frames.yaml, such a file, or what it says
    frames_in: int,  # frames
    img_size: tuple[int, int] | None,  # height and width in pixels; None: of the files
    now: datetime | None = None,  # UTC if naive; None: the clock's
    max_age: float = 3,  # intervals
    until: datetime | None = None,  # nominal time of the last frame to read; None: of the newest
) -> Latest:
    """Read the newest `frames_in` frames as training would see them.

    Excluded frames, and those dated more than one interval after `now`, are left out. Raises `InputError` if the newest
    frame is older than `max_age` intervals, one of the others is missing, one cannot be used, or all are the same.
    """
    config = path if isinstance(path, FramesConfig) else complete_config(path)
    listed = _listed(config, now)
    newest = until or listed.newest(config, max_age)
    names = listed.names_until(newest, config, frames_in)
    times = tuple(names)
    encoder = Encoder.of(config, names[times[0]], img_size)
    frames = encoder.decode(np.stack([encoder.encode(name) for name in names.values()]))
    source = encoder.source
    copies = _copies(frames, times, source)
    if copies and copies == times[1:]:
        raise InputError(
            f"the newest {frames_in} frames in {config.folder}, up to {times[-1]:%Y-%m-%d %H:%M} UTC, are all the "
            "same; see whether the radar is stuck."
        )
    said = archive_of(config).read(names[times[-1]]).metadata
    georeference = said.georeference and said.georeference.resized(encoder.grid.fitted)
    return Latest(
        frames,
        times,
        encoder.grid,
        source,
        listed.early if now is None else 0,
        copies,
        georeference,
        dict(said.credits),
    )


def recent(config: FramesConfig, now: datetime | None, max_age: float) -> list[datetime]:
    """Nominal times of the frames that are at most `max_age` intervals old, the newest last.

    Raises `InputError` if there is none.
    """
    listed = _listed(config, now)
    listed.newest(config, max_age)
    return sorted(time for time in listed.names if listed.now - time <= max_age * timedelta(minutes=config.interval))


class _Listed(NamedTuple):
    """The frames of an archive that count at present."""

    now: datetime  # naive, UTC
    names: dict[datetime, datetime]  # nominal times and those of the archive
    excluded: set[datetime]  # nominal times
    early: int  # number of frames of the future, which do not count

    def newest(self, config: FramesConfig, max_age: float) -> datetime:
        """Nominal time of the newest frame; raises `InputError` if it is too old.

        The message does not say how old it is, because a watch repeats messages that change.
        """
        newest = max(self.names)
        if self.now - newest > max_age * timedelta(minutes=config.interval):
            raise InputError(
                f"the newest frame in {config.folder} is of {newest:%Y-%m-%d %H:%M} UTC, which is more than "
                f"{max_age:g} intervals ({max_age * config.interval:g} minutes) ago; see whether frames arrive, and "
                "whether timezone is that of the names."
            )
        return newest

    def names_until(self, newest: datetime, config: FramesConfig, frames_in: int) -> dict[datetime, datetime]:
        """Nominal times, and those of the archive, of the last `frames_in` frames, the oldest first."""
        times = [newest - n * timedelta(minutes=config.interval) for n in reversed(range(frames_in))]
        gap = next((time for time in times if time not in self.names), None)
        if gap is not None:
            why = f"excluded by {exclusions_path(config.file)}" if gap in self.excluded else "missing"
            raise InputError(
                f"{archive_of(config).name_of(gap)} is {why}: a forecast from {newest:%Y-%m-%d %H:%M} UTC "
                f"needs the last {frames_in} frames without a gap."
            )
        return {time: self.names[time] for time in times}


def _listed(config: FramesConfig, now: datetime | None) -> _Listed:
    """List the frames that count; raises `InputError` if there is none."""
    now = now or datetime.now(timezone.utc)
    now = now if now.tzinfo is None else now.astimezone(timezone.utc).replace(tzinfo=None)
    span, last = max(timedelta(days=2), 100 * timedelta(minutes=config.interval)), seconds(now) + 60 * config.interval
    listed = archive_of(config).times(now - span)  # an archive of years takes long to list
    if not ((listed >= seconds(now - span / 2)) & (listed <= last)).any():
        listed = archive_of(config).times()
    found = listed[listed <= last]
    excluded = np.isin(found, times_of(read_exclusions(config.file)))
    marks, counts = on_marks(found, excluded, round(60 * config.interval), config.tolerance)
    names = dict(zip(map(moment, marks[counts]), map(moment, found[counts]), strict=True))
    early = len(listed) - len(found)
    if not names:
        why = f"{early} of them are of the future: see to the clock, or give timezone" if early else "correct interval"
        raise InputError(f"none of the {len(listed)} frames in {config.folder} counts at present; {why}.")
    return _Listed(now, names, set(map(moment, marks[excluded])), early)


def _copies(frames: Tensor, times: tuple[datetime, ...], source: Source) -> tuple[datetime, ...]:
    """Times of frames with echo that equal the frame before."""
    distinct = (source.scale * frames >= source.steps[0]).sum(dim=(1, 2, 3)) >= DISTINCT
    stored = frames.nan_to_num(nan=0.0)
    same = (stored[1:] == stored[:-1]).flatten(1).all(dim=1)
    return tuple(time for time, copy in zip(times[1:], (distinct[1:] & same).tolist(), strict=True) if copy)
