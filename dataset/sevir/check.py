"""Checks a data set in SEVIR's layout: every row of the catalogue, every file and every frame."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataset.checking import Fault, Report
from dataset.exclusions import read_exclusions
from dataset.hdf5 import READ_ERRORS, LayoutError, file_size, patiently, reason_of
from dataset.sevir.catalog import (
    BOX,
    EXCLUDED,
    INCOMPLETE,
    OUTSIDE,
    REPEATED,
    SCHEMES,
    UNREADABLE,
    Event,
    catalog_rows,
    files_root,
    is_inside,
    parse,
)
from dataset.sevir.reader import (
    MISSING_FILE,
    OTHER_ID,
    OUT_OF_RANGE,
    WRONG_LAYOUT,
    Sevir,
    open_frames,
    read_frames,
    stored_ids,
)
from dataset.signs import (
    BAD_FRAMES,
    BLANK,
    CONSTANT,
    SAME_FRAMES,
    UNFINISHED,
    copies,
    digest_of,
    is_fresh,
    list_frames,
    rank_of,
    stuck,
)

BAD_FILE = "file cannot be opened"
MISSING_PIXELS = "255 (missing) in a frame, though pct_missing is 0"
SHARED_WEATHER = "overlaps an event of another split in time and place"
MISSING_VALUE = 255


class Look(NamedTuple):
    """What one reading of an event's frames found."""

    faults: list[tuple[str, str]]  # kind and detail
    blank: int  # frames without echo
    digest: int  # of the frames; 0 if they cannot identify the event


def check(reader: type[Sevir], data_path: str | Path, split_scheme: str = "official", workers: int = 0) -> Report:
    """Look at every row, file and frame; raises `InputError` if there is no readable catalogue.

    Of two events that share data the one of the later split is not at fault.
    """
    root, splits = files_root(data_path), SCHEMES[split_scheme]
    rows = list(catalog_rows(data_path))
    events, faults, counts = _read_rows(rows, set(read_exclusions(data_path)), splits)
    sound, at_fault = _check_files(root, events, reader.event_frames)
    faults += [Fault(event.id, splits.split_of(event.time), *fault) for event, fault in at_fault]

    loader = DataLoader(_Looks(root, sound, reader), batch_size=None, num_workers=workers)
    digests = np.zeros(len(sound), np.uint64)
    for number, look in enumerate(tqdm(loader, "checking", len(sound), unit="event", disable=None)):
        event, split = sound[number], splits.split_of(sound[number].time)
        faults += [Fault(event.id, split, *fault) for fault in look.faults]
        counts[BLANK][split] += look.blank
        digests[number] = look.digest
    faults += _shared_frames(sound, digests, splits)
    duration = timedelta(minutes=(reader.event_frames - 1) * reader.source.interval)
    faults += _shared_weather(sound, _boxes(rows), duration, splits)

    wrong = {fault.event for fault in faults}
    counts["usable events"] = Counter(splits.split_of(event.time) for event in sound if event.id not in wrong)
    return Report(Path(data_path), faults, counts)


def _read_rows(rows: list[dict[str, str]], excluded: set[str], splits) -> tuple[list[Event], list[Fault], dict]:
    """The complete events that are not excluded and have an id and a file of their own, and what is to be told."""
    complete, faults, counts = [], [], defaultdict(Counter)
    for row in rows:
        try:
            event, missing = parse(row)
        except (OverflowError, ValueError) as error:
            if row["id"] not in excluded:
                faults.append(Fault(row["id"], "", UNREADABLE, str(error)))
            continue
        split = splits.split_of(event.time)
        counts["vil rows"][split] += 1
        if missing != 0:
            counts[INCOMPLETE][split] += 1
        elif event.id in excluded:
            counts[EXCLUDED][split] += 1
        else:
            complete.append(event)

    copies = Counter(event.id for event in complete)
    events = []
    for event in complete:
        if copies[event.id] > 1:
            faults.append(Fault(event.id, splits.split_of(event.time), REPEATED, f"{copies[event.id]} times"))
        elif not is_inside(event.file):
            faults.append(Fault(event.id, splits.split_of(event.time), OUTSIDE, event.file))
        else:
            events.append(event)
    return events, faults, counts


def _check_files(
    root: Path, events: Iterable[Event], event_frames: int
) -> tuple[list[Event], list[tuple[Event, tuple[str, str]]]]:
    """Events whose file has them where the catalogue says, file by file; the others with kind and detail."""
    by_file = defaultdict(list)
    for event in events:
        by_file[event.file].append(event)
    sound, faults = [], []
    for file, its_events in tqdm(by_file.items(), "files", unit="file", disable=None):
        ids, fault = [], None
        if file_size(root / file) is None:
            fault = MISSING_FILE, file
        else:
            try:
                ids = stored_ids(root / file, event_frames)
            except LayoutError as error:
                fault = WRONG_LAYOUT, f"{file}: {error}"
            except READ_ERRORS as error:
                kind = UNFINISHED if is_fresh((root / file).stat().st_mtime) else BAD_FILE
                fault = kind, f"{file}: {reason_of(error, root / file)}"
        for event in its_events:
            found = fault or _misplaced(event, ids)
            if found:
                faults.append((event, found))
            else:
                sound.append(event)
    return sound, faults


def _misplaced(event: Event, ids: list[str]) -> tuple[str, str] | None:
    if not 0 <= event.index < len(ids):
        return OUT_OF_RANGE, f"{event.index} of {len(ids)}"
    return None if ids[event.index] == event.id else (OTHER_ID, f"{ids[event.index]!r} at {event.index}")


class _Looks(Dataset):
    """A `Look` at each event."""

    def __init__(self, root: Path, events: list[Event], reader: type[Sevir]):
        self.root, self.events, self.reader = root, events, reader
        self._opened: tuple[str, h5py.Dataset] | None = None

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, number: int) -> Look:
        event = self.events[number]
        try:
            frames = patiently(lambda: self._read(event))
        except READ_ERRORS as error:
            reason = reason_of(error, self.root / event.file)
            return Look([(BAD_FRAMES, f"{event.file}, position {event.index}: {reason}")], 0, 0)
        return look_at(frames, min(self.reader.source.thresholds))

    def _read(self, event: Event) -> np.ndarray:
        opened, self._opened = self._opened, None  # after an error the next try opens anew
        if opened is None or opened[0] != event.file:
            if opened is not None:
                opened[1].file.close()
            opened = event.file, open_frames(self.root / event.file, self.reader.event_frames)
        frames = read_frames(opened[1], event.index, 0, self.reader.event_frames)
        self._opened = opened
        return frames


def look_at(frames: np.ndarray, echo: float) -> Look:
    """Look at the frames of an event, uint8 `(H, W, T)`; `echo` is the least value that counts as weather.

    If all frames are constant none of them is a quiet moment.
    """
    lowest, highest = frames.min((0, 1)), frames.max((0, 1))
    blank, suspicious = stuck(lowest, highest, 0, echo)
    empty = bool((lowest == highest).all())
    faults = [
        (kind, list_frames(at_fault))
        for kind, at_fault in ((MISSING_PIXELS, highest == MISSING_VALUE), (CONSTANT, suspicious | empty))
        if at_fault.any()
    ]
    return Look(faults, int(blank.sum()), 0 if empty else digest_of(frames))


def _shared_frames(events: list[Event], digests: np.ndarray, splits) -> Iterator[Fault]:
    names = [splits.split_of(event.time) for event in events]
    ranks = np.array([rank_of(name) for name in names], int)
    for copy, kept in zip(*copies(digests, ranks), strict=True):
        yield Fault(events[copy].id, names[copy], SAME_FRAMES, f"{events[kept].id} ({names[kept]})")


def _boxes(rows: Iterable[dict[str, str]]) -> dict[str, np.ndarray]:
    """Corners of each event in degrees, south, west, north, east, as far as the catalogue has them."""
    boxes = {}
    for row in rows:
        try:
            boxes[row["id"]] = np.array([float(row[column]) for column in BOX])
        except (KeyError, ValueError):
            continue
    return boxes


def _shared_weather(events: list[Event], boxes: dict[str, np.ndarray], duration: timedelta, splits) -> Iterator[Fault]:
    """Events that begin less than `duration` before one of a later split that covers some of the same ground."""
    for boundary in (splits.valid_after, splits.test_after):
        near = [event for event in events if abs(event.time - boundary) < duration and event.id in boxes]
        after = [event for event in near if event.time > boundary]
        for event in near:
            if event.time > boundary:
                continue
            south_west, north_east = boxes[event.id][:2], boxes[event.id][2:]
            for other in after:
                box = boxes[other.id]
                if other.time - event.time < duration and (south_west < box[2:]).all() and (north_east > box[:2]).all():
                    detail = f"{other.id} ({splits.split_of(other.time)})"
                    yield Fault(event.id, splits.split_of(event.time), SHARED_WEATHER, detail)
                    break
