"""Walks a whole data set in SEVIR's layout and reports what is wrong with it.

    python -m dataset.check --dataset sevir --data_path DIR
    python -m dataset.check --dataset sevir --data_path DIR --fix

Every row of the catalogue, every file and every frame is looked at. Exit status 0: all is well, 1: something is wrong.
`--fix` adds the events that are at fault to DIR/exclusions.txt, which all loaders honour; what is excluded is not
looked at again. Of two events that share data the one of the later split stays, so that scores stay comparable.
"""

import argparse
import hashlib
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataset.catalog import (
    BOX,
    EVENT_ID,
    EXCLUDED,
    INCOMPLETE,
    OUTSIDE,
    REPEATED,
    SCHEMES,
    SPLITS,
    UNREADABLE,
    Event,
    file_size,
    files_root,
    is_inside,
    parse,
    vil_rows,
)
from dataset.exclusions import read_exclusions, write_exclusions
from dataset.hdf5 import READ_ERRORS, LayoutError, patiently
from dataset.sevir import (
    MISSING_FILE,
    OTHER_ID,
    OUT_OF_RANGE,
    WRONG_LAYOUT,
    Sevir,
    open_frames,
    read_frames,
    stored_ids,
)
from dataset.sevir_lr import SevirLR
from utils.errors import InputError, exit_on_input_error
from utils.log import format_table

logger = logging.getLogger(__name__)

READERS: dict[str, type[Sevir]] = {"sevir": Sevir, "synthetic": Sevir, "sevir_lr": SevirLR}

BAD_FILE = "file cannot be opened"
BAD_FRAMES = "frames cannot be read"
MISSING_PIXELS = "255 (missing) in a frame, though pct_missing is 0"
CONSTANT = "constant frame"
SAME_FRAMES = "same frames as another event"
SHARED_WEATHER = "overlaps an event of another split in time and place"
BLANK = "frames without echo"
MISSING_VALUE = 255
MOST_LISTED = 100  # faults; the table counts all


class Fault(NamedTuple):
    """Something wrong with one event."""

    event: str  # its id
    split: str  # empty if unknown
    kind: str
    detail: str = ""


class Look(NamedTuple):
    """What one reading of an event's frames found."""

    faults: list[tuple[str, str]]  # kind and detail
    blank: int  # frames without echo
    digest: str  # of the frames; empty if they cannot identify the event


class Report(NamedTuple):
    """The result of `check`."""

    faults: list[Fault]
    counts: dict[str, Counter[str]]  # of what is normal, by line of the table and split


def check(dataset: str, data_path: str | Path, split_scheme: str = "official", workers: int = 0) -> Report:
    """Look at every row, file and frame; raises `InputError` if there is no readable catalogue."""
    reader, root = READERS[dataset], files_root(data_path)
    splits = SCHEMES[split_scheme]
    rows = list(vil_rows(data_path))
    events, faults, counts = _read_rows(rows, set(read_exclusions(data_path)), splits)
    sound, at_fault = _check_files(root, events, reader.event_frames)
    faults += [Fault(event.id, splits.split_of(event.time), *fault) for event, fault in at_fault]

    loader = DataLoader(_Looks(root, sound, reader), batch_size=None, num_workers=workers)
    digests = defaultdict(list)
    for event, look in zip(sound, tqdm(loader, "checking", len(sound), unit="event", disable=None), strict=True):
        split = splits.split_of(event.time)
        faults += [Fault(event.id, split, *fault) for fault in look.faults]
        counts[BLANK][split] += look.blank
        if look.digest:
            digests[look.digest].append(event)
    faults += _shared_frames(digests.values(), splits)
    duration = timedelta(minutes=(reader.event_frames - 1) * reader.source.interval)
    faults += _shared_weather(sound, _boxes(rows), duration, splits)

    wrong = {fault.event for fault in faults}
    counts["usable events"] = Counter(splits.split_of(event.time) for event in sound if event.id not in wrong)
    return Report(faults, counts)


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
                fault = BAD_FILE, f"{file}: {error}"
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
            return Look([(BAD_FRAMES, f"{event.file}, position {event.index}: {error}")], 0, "")
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

    A frame of zeros is a quiet moment, unless it stands alone between two frames with echo (a drop-out) or all frames
    are like it. Every other frame whose pixels are all the same is at fault.
    """
    lowest, highest = frames.min((0, 1)), frames.max((0, 1))
    constant = lowest == highest
    blank = constant & (highest == 0)
    lone = np.zeros_like(blank)
    lone[1:-1] = blank[1:-1] & (highest[:-2] >= echo) & (highest[2:] >= echo)
    suspicious = constant if constant.all() else (constant & ~blank) | lone
    faults = [
        (kind, _list_frames(np.flatnonzero(at_fault)))
        for kind, at_fault in ((MISSING_PIXELS, highest == MISSING_VALUE), (CONSTANT, suspicious))
        if at_fault.any()
    ]
    digest = "" if constant.all() else hashlib.blake2b(np.ascontiguousarray(frames), digest_size=16).hexdigest()
    return Look(faults, int(blank.sum()), digest)


def _list_frames(numbers: np.ndarray, most: int = 5) -> str:
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"frame {', '.join(map(str, numbers[:most]))}{more}"


def _shared_frames(groups: Iterable[list[Event]], splits) -> Iterator[Fault]:
    """Of each group of events with equal frames, all but the first one of the latest split."""
    for group in groups:
        kept = max(group, key=lambda event: SPLITS.index(splits.split_of(event.time)))
        for event in group:
            if event is not kept:
                split = splits.split_of(kept.time)
                yield Fault(event.id, splits.split_of(event.time), SAME_FRAMES, f"{kept.id} ({split})")


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


def fix(data_path: str | Path, faults: Iterable[Fault]) -> list[Fault]:
    """Add the events at fault to the exclusions; returns the faults that remain, of rows without a usable id."""
    exclusions, remaining = read_exclusions(data_path), []
    for fault in faults:
        if EVENT_ID.fullmatch(fault.event):
            reason = " ".join(f"{fault.kind}: {fault.detail}".split())
            exclusions.setdefault(fault.event, reason)
        else:
            remaining.append(fault)
    path = write_exclusions(data_path, exclusions)
    logger.info("%s names %d events", path, len(exclusions))
    return remaining


def format_report(report: Report) -> str:
    """Faults one by one, the first MOST_LISTED of them, and a table of all by split."""
    lines = [
        " ".join(f"{fault.split or 'unknown split'} {fault.event!r}: {fault.kind} ({fault.detail})".split())
        for fault in report.faults[:MOST_LISTED]
    ]
    if len(report.faults) > MOST_LISTED:
        lines.append(f"... and {len(report.faults) - MOST_LISTED} more")
    by_kind = defaultdict(Counter)
    for fault in report.faults:
        by_kind[fault.kind][fault.split] += 1
    rows = [
        [mark + name, *(str(counter[split]) for split in (*SPLITS, ""))]
        for mark, counters in (("", report.counts), ("WRONG: ", by_kind))
        for name, counter in counters.items()
    ]
    return "\n".join([*lines, "", format_table(["", *SPLITS, "unknown"], rows)])


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dataset.check", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=tuple(READERS), default="sevir")
    parser.add_argument("--data_path", type=Path, required=True, help="folder that holds CATALOG.csv")
    parser.add_argument(
        "--split", dest="split_scheme", choices=tuple(SCHEMES), default="official", help="dates of the splits"
    )
    parser.add_argument("--fix", action="store_true", help="exclude the events at fault from now on")
    parser.add_argument("--num_workers", type=int, default=4, help="reading processes (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Check a data set; exits with status 1 if something is wrong and stays so."""
    args = build_parser().parse_args(arguments)
    if args.num_workers < 0:
        raise InputError(f"--num_workers {args.num_workers} is not possible; use 0 or more.")
    report = check(args.dataset, args.data_path, args.split_scheme, args.num_workers)
    logger.info("%s", format_report(report))
    faults = fix(args.data_path, report.faults) if args.fix and report.faults else report.faults
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with exit_on_input_error():
        main()
