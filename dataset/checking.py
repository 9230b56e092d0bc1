"""Faults, reports, exclusions and signs of bad frames, for all checks."""

import hashlib
import logging
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from dataset.exclusions import read_exclusions, write_exclusions
from dataset.parallel import parallel_map
from dataset.sequences import EVENT_ID, SPLITS
from utils.log import format_table

LOG = logging.getLogger(__name__)

CONSTANT = "constant frame"
SAME_FRAMES = "same frames as another"
BLANK = "frames without echo"
BAD_FRAMES = "frames cannot be read"
MISSING_FILE = "file is missing"
UNFINISHED = "file cannot be read and changed less than a minute ago"
PASSING = {MISSING_FILE, UNFINISHED}  # kinds of faults that may be gone tomorrow

FRESH = 60  # seconds
DETAILS = 5  # frames that a detail names
DISTINCT = 20  # pixels with echo that identify a frame
MOST_LISTED = 100  # faults that are listed one by one
MOST_REASON = 100  # characters

T = TypeVar("T")


class Fault(NamedTuple):
    """Something wrong with one event, window or frame."""

    event: str  # its id
    split: str  # empty if none or unknown
    kind: str
    detail: str = ""


class Report(NamedTuple):
    """The result of a check."""

    data_path: Path  # of the exclusions
    faults: list[Fault]
    counts: dict[str, Counter[str]]  # of what is normal, by line of the table and split


class Look(NamedTuple):
    """What one reading of an event or a window finds."""

    faults: list[tuple[str, str]]  # kind and detail
    blank: int  # frames without echo
    digests: tuple[int, ...]  # of all frames together, and of single ones; 0 if it identifies nothing


def collect(
    report: Report,
    items: Sequence[T],
    names: Sequence[tuple[str, str]],  # id and split of each item
    look: Callable[[T], Look],
    digests: int,  # of each item
    workers: int,
    unit: str,  # of the progress bar
) -> np.ndarray:
    """Look at all items, extend the report, and return digests `(N, digests)`."""
    found = np.zeros((len(items), digests), np.uint64)
    for number, one in enumerate(parallel_map(look, items, workers, "checking", unit)):
        report.faults.extend(Fault(*names[number], *fault) for fault in one.faults)
        report.counts[BLANK][names[number][1]] += one.blank
        found[number] = one.digests
    return found


def sound(names: list[tuple[str, str]], faults: list[Fault]) -> np.ndarray:
    """Numbers of the items of a split that are not at fault."""
    wrong = {fault.event for fault in faults}
    return np.flatnonzero([bool(split) and name not in wrong for name, split in names])


def same_frames(names: Sequence[tuple[str, str]], digests: np.ndarray) -> Iterator[Fault]:
    """Faults of the items whose frames equal those of another one."""
    for copy, kept in zip(*copies(digests, ranks_of(names)), strict=True):
        yield Fault(*names[copy], SAME_FRAMES, "{} ({})".format(*names[kept]))


def fix(report: Report) -> list[Fault]:
    """Exclude what is at fault and return the faults that remain."""
    exclusions, remaining = read_exclusions(report.data_path), []
    for fault in report.faults:
        if EVENT_ID.fullmatch(fault.event) and fault.kind not in PASSING:
            reason = textwrap.shorten(f"{fault.kind}: {fault.detail}".rstrip(": "), MOST_REASON, placeholder=" ...")
            exclusions.setdefault(fault.event, reason)
        else:
            remaining.append(fault)
    path = write_exclusions(report.data_path, exclusions)
    LOG.info("%s names %d items; %d faults remain", path, len(exclusions), len(remaining))
    return remaining


def format_report(report: Report) -> str:
    """List the first MOST_LISTED faults and a table of all."""
    lines = [
        " ".join(f"{fault.split or 'no split'} {fault.event!r}: {fault.kind} ({fault.detail})".split())
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
    return "\n".join([*lines, "", format_table(["", *SPLITS, "none"], rows)])


def is_fresh(changed: float | np.ndarray) -> bool | np.ndarray:
    """Whether files may still be half written; `changed` in seconds since 1970."""
    return abs(time.time() - changed) < FRESH


def digest_of(values: np.ndarray) -> int:
    """Hash the values of an array to 64 bits.

    Among a million arrays, two different ones have the same hash once in ten million archives.
    """
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(values), digest_size=8).digest(), "little")


def stuck(
    lowest: np.ndarray,  # value of each frame `(T,)`, NaN if it cannot be read
    highest: np.ndarray,
    quiet: float,  # highest value of a blank frame
    echo: float,  # least value that counts as weather
    joined: np.ndarray | bool = True,  # `(T - 1,)`: whether a frame follows the one before it without a gap
) -> tuple[np.ndarray, np.ndarray]:
    """Find blank frames and suspiciously constant ones, two bool `(T,)`.

    A blank frame is a quiet moment, unless it stands alone between two frames with echo: a drop-out. Every other frame
    whose pixels are all the same is at fault.
    """
    constant = lowest == highest
    blank = constant & (highest <= quiet)
    joined = np.broadcast_to(joined, max(0, len(lowest) - 1))
    lone = np.zeros_like(blank)
    between = joined[:-1] & joined[1:] & (highest[:-2] >= echo) & (highest[2:] >= echo)
    lone[1:-1] = blank[1:-1] & between
    return blank, (constant & ~blank) | lone


def copies(digests: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the copies, rising, and of their originals.

    The original is the first item of the latest split (`ranks`, from `ranks_of`), so that scores stay comparable. Items
    whose digest is 0 are unlike all others.
    """
    order = np.lexsort((np.arange(len(digests)), -ranks, digests))
    begins = np.append(True, np.diff(digests[order]) != 0)[: len(order)]
    kept = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    copy = np.flatnonzero(~begins & (digests[order] != 0))
    copy = copy[np.argsort(order[copy])]
    return order[copy], kept[copy]


def ranks_of(names: Sequence[tuple[str, str]]) -> np.ndarray:
    """Place in time of the split of each item; 0 for none."""
    return np.array([("", *SPLITS).index(split) for _, split in names], int)


def list_frames(at_fault: np.ndarray) -> str:
    """Numbers of the frames that are True, the first of them."""
    numbers = np.flatnonzero(at_fault)
    more = f" and {len(numbers) - DETAILS} more" if len(numbers) > DETAILS else ""
    return f"frame {', '.join(map(str, numbers[:DETAILS]))}{more}"
