"""Checks a published file of Shanghai, MeteoNet or CIKM radar: every window that it holds or announces."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataset.checking import Fault, Report
from dataset.exclusions import exclusions_path, read_exclusions
from dataset.hdf5 import READ_ERRORS, LayoutError, file_size, open_hdf5, own_dataset, patiently, reason_of, refuse_bombs
from dataset.published.reader import LAYOUTS, Layout, announced, divide, file_of, window_id
from dataset.signs import (
    BAD_FRAMES,
    BLANK,
    CONSTANT,
    SAME_FRAMES,
    TELLING,
    copies,
    digest_of,
    list_frames,
    rank_of,
    stuck,
)
from utils.errors import InputError

NO_SPLIT = "split without windows or without their number"
TOO_FEW = "far more windows are announced than held"
ABSENT = "window is missing"
UNANNOUNCED = "window is not announced, and never read"
WRONG_WINDOW = "window has another type or shape"
OTHER_SIZE = "window has another size than most"
OUT_OF_RANGE = "values that no pixel can have"
ALL_MISSING = "frame without a valid pixel"
SHARED_FRAMES = "shares frames with a window of a later split"

MOST_ABSENT = 10_000  # windows that are told one by one


class Window(NamedTuple):
    """One window of the file."""

    name: str  # in the file
    split: str  # empty: between training and validation, where no loader reads
    id: str


class Look(NamedTuple):
    """What one reading of a window found."""

    faults: list[tuple[str, str]]  # kind and detail
    blank: int  # frames without echo
    digest: int  # of the window; 0 if it does not tell it from others
    digests: bytes  # of its frames, 64 bits each, with zeros for those that could repeat by chance


def check(name: str, data_path: str | Path, workers: int = 0) -> Report:
    """Look at every window; raises `InputError` if the file cannot be opened.

    Of two windows that share frames the one of the later split is not at fault.
    """
    path, layout = file_of(name, data_path), LAYOUTS[name]
    if file_size(path) is None:
        raise InputError(f"{path} does not exist; pass the {layout.source.name} HDF5 file as --data_path.")
    excluded = set(read_exclusions(path))
    try:
        with open_hdf5(path) as file:
            windows, faults, counts = _list_windows(file, layout, excluded, path)
    except READ_ERRORS as error:
        raise InputError(f"Cannot read {path} as HDF5 ({reason_of(error, path)}); get the file again.") from error

    loader = DataLoader(_Looks(path, layout, windows), batch_size=None, num_workers=workers)
    digests, of_frames = np.zeros(len(windows), np.uint64), np.zeros((len(windows), layout.frames), np.uint64)
    for number, look in enumerate(tqdm(loader, "checking", len(windows), unit="window", disable=None)):
        faults += [Fault(windows[number].id, windows[number].split, *fault) for fault in look.faults]
        counts[BLANK][windows[number].split] += look.blank
        digests[number], of_frames[number] = look.digest, np.frombuffer(look.digests, np.uint64)
    for find, digest in ((_same, digests), (_shared, of_frames)):
        wrong = {fault.event for fault in faults}
        sound = np.flatnonzero([bool(window.split) and window.id not in wrong for window in windows])
        faults += find([windows[number] for number in sound], digest[sound])

    wrong = {fault.event for fault in faults}
    counts["usable windows"] = Counter(window.split for window in windows if window.split and window.id not in wrong)
    return Report(path, faults, counts)


def _list_windows(
    file: h5py.File, layout: Layout, excluded: set[str], path: Path
) -> tuple[list[Window], list[Fault], dict[str, Counter[str]]]:
    """The windows of right type and shape that are not excluded, and what is to be told."""
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
        sound, at_fault = _sound(file, layout, [window for window in listed if window.id not in excluded], held)
        windows, faults = windows + sound, faults + at_fault
    return windows, faults, counts


def _splits_of(stored: str, count: int, layout: Layout) -> list[str]:
    """The split that each window of a stored one belongs to, empty where it belongs to none."""
    if stored == "test" or layout.has_valid:
        return [stored] * count
    train, valid = divide(count, layout.frames)
    return ["train" if number in train else "valid" if number in valid else "" for number in range(count)]


def _sound(file: h5py.File, layout: Layout, windows: list[Window], held: set[str]) -> tuple[list[Window], list[Fault]]:
    """The windows of right type and of the size that most have; faults of the others."""
    sizes, faults = {}, []
    for window in tqdm(windows, "windows", unit="window", disable=None):
        if window.name not in held:
            faults.append(Fault(window.id, window.split, ABSENT))
            continue
        try:
            data = own_dataset(file, window.name)
            misfit = layout.misfit(data)
            sizes |= {} if misfit else {window: data.shape[1:]}
        except (AttributeError, *READ_ERRORS) as error:
            misfit = reason_of(error, Path(file.filename))
        if misfit:
            faults.append(Fault(window.id, window.split, WRONG_WINDOW, misfit))
    usual = max(Counter(sizes.values()).items(), key=lambda item: item[1], default=((), 0))[0]
    for window, size in sizes.items():
        if size != usual:
            detail = f"{' x '.join(map(str, size))} instead of {' x '.join(map(str, usual))}"
            faults.append(Fault(window.id, window.split, OTHER_SIZE, detail))
    return [window for window, size in sizes.items() if size == usual], faults


class _Looks(Dataset):
    """A `Look` at each window."""

    def __init__(self, path: Path, layout: Layout, windows: list[Window]):
        self.path, self.layout, self.windows = path, layout, windows
        self._file: h5py.File | None = None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> Look:
        window = self.windows[number]
        try:
            return look_at(patiently(lambda: self._read(window.name)), self.layout)
        except READ_ERRORS as error:
            return Look([(BAD_FRAMES, reason_of(error, self.path))], 0, 0, bytes(8 * self.layout.frames))

    def _read(self, name: str) -> np.ndarray:
        file, self._file = self._file, None  # after an error the next try opens anew
        file = file or open_hdf5(self.path)
        data = own_dataset(file, name)
        if misfit := self.layout.misfit(data):
            raise LayoutError(f"it has changed: {misfit}")
        refuse_bombs(data, (0, 0, 0), data.shape)
        frames = data[()]
        self._file = file
        return frames


def look_at(frames: np.ndarray, layout: Layout) -> Look:
    """Look at the frames of a window, uint8 `(T, H, W)`, leaving missing pixels out of account."""
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
    telling = ((frames >= echo) & valid).sum((1, 2)) >= TELLING
    digests = [digest_of(frame) if tells else 0 for frame, tells in zip(frames, telling, strict=True)]
    return Look(faults, int(blank.sum()), 0 if constant else digest_of(frames), np.array(digests, np.uint64).tobytes())


def _ranks(windows: list[Window]) -> np.ndarray:
    return np.array([rank_of(window.split) for window in windows], int)


def _same(windows: list[Window], digests: np.ndarray) -> Iterator[Fault]:
    """Windows stored more than once."""
    for copy, kept in zip(*copies(digests, _ranks(windows)), strict=True):
        yield Fault(windows[copy].id, windows[copy].split, SAME_FRAMES, f"{windows[kept].id} ({windows[kept].split})")


def _shared(windows: list[Window], digests: np.ndarray) -> Iterator[Fault]:
    """Windows with a frame that a window of a later split has too; `digests` are of frames, `(N, T)`."""
    frames = digests.shape[1]
    ranks = np.repeat(_ranks(windows), frames)
    copy, kept = copies(digests.ravel(), ranks)
    across = ranks[kept] > ranks[copy]
    own, first = np.unique(copy[across] // frames, return_index=True)
    for number, other in zip(own, kept[across][first] // frames, strict=True):
        detail = f"{windows[other].id} ({windows[other].split})"
        yield Fault(windows[number].id, windows[number].split, SHARED_FRAMES, detail)
