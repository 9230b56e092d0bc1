"""Checks a folder of frames: every file whose name has a time."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.checking import (
    BAD_FRAMES,
    BLANK,
    CONSTANT,
    DISTINCT,
    SAME_FRAMES,
    UNFINISHED,
    Fault,
    Report,
    copies,
    digest_of,
    is_fresh,
    ranks_of,
    stuck,
)
from dataset.exclusions import exclusions_path
from dataset.frames.archive.archive import archive_of
from dataset.frames.archive.names import frame_id, moment
from dataset.frames.cache.cache import listed_frames
from dataset.frames.complete import complete_config, first_frame
from dataset.frames.config import FramesConfig
from dataset.frames.description import describe
from dataset.frames.reader import Runs, warn_of_shared_days
from dataset.frames.values import StoredFrame
from dataset.hdf5 import AccessError
from dataset.parallel import parallel_map
from dataset.sequences import SPLITS
from utils.errors import InputError

LOG = logging.getLogger(__name__)

UNLIKE = "frame of another size or type than most"
ALL_MISSING = "frame without a valid pixel"
FAR_OUT = "most values more than a whole range beyond the range"
FAR_PIXELS = "pixels more than a whole range beyond the range"

SEQUENCE = 25  # frames; default of a training
LOOKS = np.dtype(
    [("form", "u4"), ("lowest", "f8"), ("highest", "f8"), ("digest", "u8"), ("far", "u4"), ("pixels", "u4")]
)


class Look(NamedTuple):
    """What one reading of a frame found."""

    form: str  # size and type as stored; why it cannot be read if it is not `readable`
    readable: bool
    lowest: float = np.nan  # in units, of valid pixels; NaN if there is none
    highest: float = np.nan
    digest: int = 0  # 0 if the frame has too little echo to be identified
    far: int = 0  # pixels more than a whole range beyond the range
    pixels: int = 0  # that are valid


def check(data_path: str | Path, workers: int = 0) -> Report:
    """Check every file of a folder.

    Raises `InputError` for mistakes in `frames.yaml` and for folders without frames. Of two equal frames the one of the
    later split, or else the first, is not at fault.
    """
    config = complete_config(data_path)
    listed, excluded = listed_frames(config)
    splits, splits_excluded = (_splits_of(found["mark"], config) for found in (listed, excluded))
    times, fresh = listed["time"], is_fresh(listed["mtime"] / 1e9)
    forms, looks, unreadable = _look_at_all(config, times, workers)
    if len(unreadable) == len(listed):  # a mistake in frames.yaml, more likely than so many damaged files
        raise InputError(f"None of the {len(listed)} frames in {config.folder} can be used: {unreadable[0][1]}")
    LOG.info("%s", describe(*first_frame(config), config))
    if config.split:
        warn_of_shared_days(config, listed["mark"])
    found = [(number, UNFINISHED if fresh[number] else BAD_FRAMES, reason) for number, reason in unreadable]
    found += [*_judge(config, listed, splits, forms, looks)]
    faults = [Fault(frame_id(times[number]), splits[number], kind, detail) for number, kind, detail in found]

    usable = np.ones(len(listed), bool)
    usable[[number for number, _, _ in found]] = False
    high = config.range[1]
    counts = {
        "files": Counter([*splits, *splits_excluded]),
        f"excluded by {exclusions_path(config.file).name}": Counter(splits_excluded),
        "usable frames": Counter(splits[usable]),
        BLANK: Counter(splits[usable & (looks["highest"] <= _quiet(config))]),
        f"frames cut off at {high:g} {config.units}": Counter(splits[usable & (looks["highest"] > high)]),
        **_count_far(config, looks, splits, usable),
    }
    counts |= _count_sequences(config, np.append(listed["mark"], excluded["mark"]), listed["mark"][usable])
    return Report(config.file, faults, counts)


def _splits_of(times: np.ndarray, config: FramesConfig) -> np.ndarray:
    """Split of each frame, empty if `frames.yaml` has no splits."""
    names = np.array(SPLITS, object)
    return names[config.split.numbers(times)] if config.split else np.full(len(times), "", object)


def _look_at_all(
    config: FramesConfig, times: np.ndarray, workers: int
) -> tuple[list[str], np.ndarray, list[tuple[int, str]]]:
    """Forms that occur, a row of LOOKS per frame, and unreadable frames.

    `form` is a place among the sizes and types, the first of which is empty and that of unreadable frames.
    """
    forms, looks, unreadable = {"": 0}, np.zeros(len(times), LOOKS), []
    for number, look in enumerate(parallel_map(partial(_look, config), times, workers, "checking", "frame")):
        form = look.form if look.readable else ""
        looks[number] = (forms.setdefault(form, len(forms)), *look[2:])
        if not look.readable:
            unreadable.append((number, look.form))
    return list(forms), looks, unreadable


def _look(config: FramesConfig, time: int) -> Look:
    try:
        return look_at(archive_of(config).read(moment(time)), config)
    except AccessError:
        raise
    except InputError as error:
        return Look(str(error), False)


def look_at(frame: StoredFrame, config: FramesConfig) -> Look:
    """Look at a frame, leaving missing pixels out of account."""
    height, width = frame.values.shape
    form, valid = f"{height} x {width} {frame.kind}", frame.values[~np.isnan(frame.values)]
    if not valid.size:
        return Look(form, True)
    distinct = np.count_nonzero(valid >= config.thresholds[0]) >= DISTINCT
    digest = digest_of(frame.values) if distinct else 0
    low, high = config.range
    far = np.count_nonzero((valid < 2 * low - high) | (valid > 2 * high - low))
    return Look(form, True, float(valid.min()), float(valid.max()), digest, far, valid.size)


def _judge(
    config: FramesConfig, listed: np.ndarray, splits: np.ndarray, forms: list[str], looks: np.ndarray
) -> Iterator[tuple[int, str, str]]:
    """Number, kind and detail of each fault of readable frames."""
    usual = int(np.bincount(looks["form"], minlength=len(forms))[1:].argmax()) + 1 if len(forms) > 1 else 0
    for number in np.flatnonzero((looks["form"] != usual) & (looks["form"] > 0)):
        yield number, UNLIKE, f"{forms[looks['form'][number]]} instead of {forms[usual]}"
    like = (looks["form"] == usual) & (looks["form"] > 0)
    lowest, highest = (np.where(like, looks[field], np.nan) for field in ("lowest", "highest"))
    for number in np.flatnonzero(like & np.isnan(highest)):
        yield number, ALL_MISSING, ""
    for number in np.flatnonzero(like & (2 * looks["far"] > looks["pixels"])):
        yield number, FAR_OUT, f"{lowest[number]:g} to {highest[number]:g} {config.units}"
    joined = np.diff(listed["mark"]) <= round(config.interval * 60)
    _, suspicious = stuck(lowest, highest, _quiet(config), config.thresholds[0], joined)
    for number in np.flatnonzero(suspicious):
        yield number, CONSTANT, f"{lowest[number]:g} {config.units}"
    names = [(frame_id(time), split) for time, split in zip(listed["time"], splits, strict=True)]
    for copy, kept in zip(*copies(np.where(like, looks["digest"], 0), ranks_of(names)), strict=True):
        yield copy, SAME_FRAMES, "{} ({})".format(*names[kept])


def _count_far(
    config: FramesConfig, looks: np.ndarray, splits: np.ndarray, usable: np.ndarray
) -> dict[str, Counter[str]]:
    """Number of clipped pixels far beyond the range, by split."""
    far = usable & (looks["far"] > 0)
    if not far.any():
        return {}
    counts = Counter()
    for split, pixels in zip(splits[far], looks["far"][far].tolist(), strict=True):
        counts[split] += pixels
    lowest, highest = looks["lowest"][far].min(), looks["highest"][far].max()
    return {f"{FAR_PIXELS} ({lowest:g} to {highest:g} {config.units}), clipped": counts}


def _quiet(config: FramesConfig) -> float:
    """Highest value of a frame without echo, with a margin for rounding."""
    low, high = config.range
    return low + 1e-6 * (high - low)


def _count_sequences(config: FramesConfig, present: np.ndarray, usable: np.ndarray) -> dict[str, Counter[str]]:
    """Count gaps, sequences and lost sequences by split; times in seconds."""
    counts, interval = defaultdict(Counter), round(config.interval * 60)
    splits, splits_usable = _splits_of(present, config), _splits_of(usable, config)
    for split in dict.fromkeys(splits):
        runs = Runs.of(usable[splits_usable == split], interval)
        sequences = len(runs.windows(SEQUENCE, config.stride))
        possible = _sequences_without_gaps(present[splits == split], interval, config.stride)
        counts["gaps"][split] = runs.gaps
        counts["frames missing in gaps"][split] = runs.missing
        counts[f"sequences of {SEQUENCE} frames"][split] = sequences
        counts["sequences lost to gaps"][split] = max(0, possible - sequences)
    return counts


def _sequences_without_gaps(times: np.ndarray, interval: int, stride: int) -> int:
    """Number of sequences if no frame were missing or unusable."""
    _, phase = np.unique(times % interval, return_inverse=True)
    first, last = np.full(phase.max() + 1, times.max()), np.full(phase.max() + 1, times.min())
    np.minimum.at(first, phase, times)
    np.maximum.at(last, phase, times)
    frames = (last - first) // interval + 1
    return int(np.maximum((frames - SEQUENCE) // stride + 1, 0).sum())
