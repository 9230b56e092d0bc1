"""Check of a published file of Shanghai, MeteoNet or CIKM radar."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

from dataset.checking import (
    BAD_FRAMES,
    CONSTANT,
    DISTINCT,
    Fault,
    Look,
    Report,
    collect,
    copies,
    digest_of,
    list_frames,
    ranks_of,
    same_frames,
    sound,
    stuck,
)
from dataset.exclusions import exclusions_path, read_exclusions
from dataset.hdf5 import READ_ERRORS, OpenFiles, open_hdf5, reason_of
from dataset.published.reader import (
    LAYOUTS,
    Layout,
    announced,
    divide,
    file_of,
    find_window,
    open_file,
    read_window,
    window_id,
)

NO_SPLIT = "split without windows or without their number"
TOO_FEW = "far more windows are announced than held"
ABSENT = "window is missing"
UNANNOUNCED = "window is not announced, and never read"
WRONG_WINDOW = "window has another type or shape"
OTHER_SIZE = "window has another size than most"
OUT_OF_RANGE = "values that no pixel can have"
ALL_MISSING = "frame without a valid pixel"
SHARED_FRAMES = "shares frames with a window of a later split"

MOST_ABSENT = 10_000  # missing windows that are reported one by one


class Window(NamedTuple):
    """One window of the file."""

    name: str  # in the file
    split: str  # empty: between training and validation, where no loader reads
    id: str


def check(name: str, data_path: str | Path, workers: int = 0) -> Report:
    """Check every window.

    Raises `InputError` if the file cannot be opened. Of two windows that share frames, the one of the later
    split is not at fault.
    """
    path, layout = file_of(name, data_path), LAYOUTS[name]
    excluded = set(read_exclusions(path))
    with open_file(path, layout.source) as file:
        windows, faults, counts = _list_windows(file, layout, excluded, path)
    names = [(window.id, window.split) for window in windows]
    report = Report(path, faults, counts)
    look = partial(_look, OpenFiles(open_hdf5), path, layout)
    digests = collect(report, windows, names, look, 1 + layout.frames, workers, "window")
    for find in (_same, _shared):
        usable = sound(names, faults)
        faults += find([names[number] for number in usable], digests[usable])
    counts["usable windows"] = Counter(names[number][1] for number in sound(names, faults))
    return report


def _list_windows(
    file: h5py.File, layout: Layout, excluded: set[str], path: Path
) -> tuple[list[Window], list[Fault], dict[str, Counter[str]]]:
    """Windows to look at, faults of the others, and counts."""
    windows, faults, counts = [], [], defaultdict(Counter)
    for stored in ("train", "valid", "test") if layout.has_valid else ("train", "test"):
        try:
            count, held = announced(file, layout, stored), set(file[stored])
        except (AttributeError, *READ_ERRORS) as error:
            faults.append(Fault(f"{stored}/", stored, NO_SPLIT, reason_of(error, path)))
            continue
        held = {f"{stored}/{own}" for own in held} - {layout.length.format(split=stored)}
        if count < 1:
            faults.append(Fault(f"{stored}/", stored, NO_SPLIT, f"{count} announced, {len(held)} held"))
        if count > len(held) + MOST_ABSENT:
            faults.append(Fault(f"{stored}/", stored, TOO_FEW, f"{count} announced, {len(held)} held"))
            continue
        names = [layout.name_of(stored, number) for number in range(count)]
        splits = _splits_of(stored, count, layout)
        listed = [Window(*row) for row in zip(names, splits, map(window_id, names), strict=True)]
        surplus = sorted(window_id(own) for own in held.difference(names))
        faults += [Fault(window, stored, UNANNOUNCED) for window in surplus if window not in excluded]
        counts["windows announced"].update(splits)
        counts["windows held"].update(window.split for window in listed if window.name in held)
        counts[f"excluded by {exclusions_path(path).name}"].update(w.split for w in listed if w.id in excluded)
        fitting, at_fault = _fitting(file, layout, [window for window in listed if window.id not in excluded], held)
        windows, faults = windows + fitting, faults + at_fault
    return windows, faults, counts


def _splits_of(stored: str, count: int, layout: Layout) -> list[str]:
    """Split of each window of a stored split, empty for none."""
    if stored == "test" or layout.has_valid:
        return [stored] * count
    train, valid = divide(count, layout.frames)
    return ["train" if number in train else "valid" if number in valid else "" for number in range(count)]


def _fitting(
    file: h5py.File, layout: Layout, windows: list[Window], held: set[str]
) -> tuple[list[Window], list[Fault]]:
    """Windows of the right type and usual size; faults of others."""
    sizes, faults = {}, []
    for window in tqdm(windows, "windows", unit="window", disable=None):
        if window.name not in held:
            faults.append(Fault(window.id, window.split, ABSENT))
            continue
        try:
            sizes[window] = find_window(file, window.name, layout).shape[1:]
        except (AttributeError, *READ_ERRORS) as error:
            faults.append(Fault(window.id, window.split, WRONG_WINDOW, reason_of(error, Path(file.filename))))
    usual = max(Counter(sizes.values()).items(), key=lambda item: item[1], default=((), 0))[0]
    for window, size in sizes.items():
        if size != usual:
            detail = f"{' x '.join(map(str, size))} instead of {' x '.join(map(str, usual))}"
            faults.append(Fault(window.id, window.split, OTHER_SIZE, detail))
    return [window for window, size in sizes.items() if size == usual], faults


def _look(files: OpenFiles, path: Path, layout: Layout, window: Window) -> Look:
    try:
        return look_at(files.read(path, lambda file: read_window(file, window.name, layout, layout.frames)), layout)
    except READ_ERRORS as error:
        return Look([(BAD_FRAMES, reason_of(error, path))], 0, (0,) * (1 + layout.frames))


def look_at(frames: np.ndarray, layout: Layout) -> Look:
    """Look at the valid pixels of a window, uint8 `(T, H, W)`."""
    valid = frames != layout.missing if layout.missing is not None else np.ones(frames.shape, bool)
    lowest, highest = frames.min((1, 2), where=valid, initial=255), frames.max((1, 2), where=valid, initial=0)
    echo = min(layout.source.thresholds) * layout.full / layout.source.scale
    blank, suspicious = stuck(lowest, highest, 0, echo)
    empty = lowest > highest
    constant = bool((empty | (lowest == highest)).all())
    signs = {
        OUT_OF_RANGE: highest > layout.full,
        ALL_MISSING: empty,
        CONSTANT: (suspicious | constant) & ~empty,
    }
    faults = [(kind, list_frames(at_fault)) for kind, at_fault in signs.items() if at_fault.any()]
    identified = ((frames >= echo) & valid).sum((1, 2)) >= DISTINCT
    digests = [digest_of(frame) if distinct else 0 for frame, distinct in zip(frames, identified, strict=True)]
    return Look(faults, int(blank.sum()), (0 if constant else digest_of(frames), *digests))


def _same(names: list[tuple[str, str]], digests: np.ndarray) -> Iterator[Fault]:
    """Windows stored more than once."""
    return same_frames(names, digests[:, 0])


def _shared(names: list[tuple[str, str]], digests: np.ndarray) -> Iterator[Fault]:
    """Windows that share a frame with one of a later split."""
    frames = digests.shape[1] - 1
    ranks = np.repeat(ranks_of(names), frames)
    copy, kept = copies(digests[:, 1:].ravel(), ranks)
    across = ranks[kept] > ranks[copy]
    own, first = np.unique(copy[across] // frames, return_index=True)
    for number, other in zip(own, kept[across][first] // frames, strict=True):
        yield Fault(*names[number], SHARED_FRAMES, "{} ({})".format(*names[other]))
