"""The newest frames of a folder, for operational forecasts."""

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dataset.checking import DISTINCT
from dataset.exclusions import exclusions_path, read_exclusions
from dataset.frames.archive import archive_of
from dataset.frames.complete import complete_config
from dataset.frames.config import FramesConfig
from dataset.frames.encoding import Encoder, Grid
from dataset.frames.georeference import Georeference
from dataset.frames.names import moment, on_marks, seconds, times_of
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
) -> Latest:
    """Read the newest `frames_in` frames as training would see them.

    Excluded frames, and those dated more than one interval after `now`, are left out. Raises `InputError` if the newest
    frame is older than `max_age` intervals, one of the others is missing, one cannot be used, or all are the same.
    """
    config = path if isinstance(path, FramesConfig) else complete_config(path)
    live, now = now is None, now or datetime.now(timezone.utc)
    now = now if now.tzinfo is None else now.astimezone(timezone.utc).replace(tzinfo=None)
    names, early = _newest(config, frames_in, now, max_age)
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
    return Latest(frames, times, encoder.grid, source, early if live else 0, copies, georeference, dict(said.credits))


def _newest(config: FramesConfig, frames_in: int, now: datetime, max_age: float) -> tuple[dict, int]:
    """Nominal and stored times of the newest frames; number of future frames.

    The oldest comes first. Messages do not say how old a frame is, because a watch repeats messages that change.
    """
    interval = timedelta(minutes=config.interval)
    archive = archive_of(config)
    listed = archive.times()
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
            f"{archive.name_of(gap)} is {why}: a forecast from {newest:%Y-%m-%d %H:%M} UTC "
            f"needs the last {frames_in} frames without a gap."
        )
    return {time: names[time] for time in times}, len(listed) - len(found)


def _copies(frames: Tensor, times: tuple[datetime, ...], source: Source) -> tuple[datetime, ...]:
    """Times of frames with echo that equal the frame before."""
    distinct = (source.scale * frames >= source.steps[0]).sum(dim=(1, 2, 3)) >= DISTINCT
    stored = frames.nan_to_num(nan=0.0)
    same = (stored[1:] == stored[:-1]).flatten(1).all(dim=1)
    return tuple(time for time, copy in zip(times[1:], (distinct[1:] & same).tolist(), strict=True) if copy)
