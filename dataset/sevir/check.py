"""Check of a data set in SEVIR's layout."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np

from dataset.checking import (
    BAD_FRAMES,
    CONSTANT,
    UNFINISHED,
    Fault,
    Look,
    Report,
    collect,
    digest_of,
    is_fresh,
    list_frames,
    same_frames,
    sound,
    stuck,
)
from dataset.hdf5 import READ_ERRORS, OpenFiles, reason_of
from dataset.sevir.catalog import (
    BOX,
    EXCLUDED,
    INCOMPLETE,
    SCHEMES,
    Event,
    SplitScheme,
    catalog_rows,
    files_root,
    read_rows,
)
from dataset.sevir.reader import Sevir, faults_of, open_frames, read_frames

BAD_FILE = "file cannot be opened"
MISSING_PIXELS = "255 (missing) in a frame, though pct_missing is 0"
SHARED_WEATHER = "overlaps an event of another split in time and place"
MISSING_VALUE = 255


def check(reader: type[Sevir], data_path: str | Path, split_scheme: str = "official", workers: int = 0) -> Report:
    """Check every row, file and frame.

    Raises `InputError` if there is no readable catalogue. Of two events that share data the one of the later split is
    not at fault.
    """
    root, splits = files_root(data_path), SCHEMES[split_scheme]
    events, faults, counts = _read_rows(data_path, splits)
    found = faults_of(root, events, reader.event_frames, _unreadable)
    rows = list(zip(events, found, strict=True))
    faults += [Fault(event.id, splits.split_of(event.time), *fault) for event, fault in rows if fault]

    sound_events = [event for event, fault in rows if not fault]
    names = [(event.id, splits.split_of(event.time)) for event in sound_events]
    report = Report(Path(data_path), faults, counts)
    look = partial(_look, OpenFiles(partial(open_frames, event_frames=reader.event_frames)), root, reader)
    digests = collect(report, sound_events, names, look, 1, workers, "event")
    usable = sound(names, faults)
    faults += same_frames([names[number] for number in usable], digests[usable, 0])
    duration = timedelta(minutes=(reader.event_frames - 1) * reader.source.interval)
    faults += _shared_weather(sound_events, _boxes(data_path), duration, splits)
    counts["usable events"] = Counter(names[number][1] for number in sound(names, faults))
    return report


def _read_rows(data_path: str | Path, splits: SplitScheme) -> tuple[list[Event], list[Fault], dict[str, Counter[str]]]:
    """Usable events, faults of the other rows, and counts."""
    events, faults, counts = [], [], defaultdict(Counter)
    for row in read_rows(data_path):
        split = splits.split_of(row.event.time) if row.event else ""
        counts["vil rows"][split] += 1
        if row.fault in (INCOMPLETE, EXCLUDED):
            counts[row.fault][split] += 1
        elif row.fault:
            faults.append(Fault(row.id, split, row.fault, row.detail))
        else:
            events.append(row.event)
    return events, faults, counts


def _unreadable(path: Path, error: Exception) -> tuple[str, str]:
    return UNFINISHED if is_fresh(path.stat().st_mtime) else BAD_FILE, f"{path.name}: {reason_of(error, path)}"


def _look(files: OpenFiles, root: Path, reader: type[Sevir], event: Event) -> Look:
    path = root / event.file
    try:
        frames = files.read(path, lambda vil: read_frames(vil, event.index, 0, reader.event_frames))
    except READ_ERRORS as error:
        return Look([(BAD_FRAMES, f"{event.file}, position {event.index}: {reason_of(error, path)}")], 0, (0,))
    return look_at(frames, min(reader.source.thresholds))


def look_at(frames: np.ndarray, echo: float) -> Look:
    """Look at the frames of an event, uint8 `(H, W, T)`.

    Values of at least `echo` count as weather. If all frames are constant none of them is a quiet moment.
    """
    lowest, highest = frames.min((0, 1)), frames.max((0, 1))
    blank, suspicious = stuck(lowest, highest, 0, echo)
    empty = bool((lowest == highest).all())
    faults = [
        (kind, list_frames(at_fault))
        for kind, at_fault in ((MISSING_PIXELS, highest == MISSING_VALUE), (CONSTANT, suspicious | empty))
        if at_fault.any()
    ]
    return Look(faults, int(blank.sum()), (0 if empty else digest_of(frames),))


def _boxes(data_path: str | Path) -> dict[str, np.ndarray]:
    """South, west, north and east edge of events in degrees."""
    boxes = {}
    for row in catalog_rows(data_path):
        try:
            boxes[row["id"]] = np.array([float(row[column]) for column in BOX])
        except (KeyError, ValueError):
            continue
    return boxes


def _shared_weather(events: list[Event], boxes: dict[str, np.ndarray], duration: timedelta, splits) -> Iterator[Fault]:
    """Events that overlap one of a later split in time and place."""
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
