"""What a check found, the same for data sets of all kinds: faults, counts, and the exclusions that follow from them."""

import logging
import textwrap
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from dataset.exclusions import read_exclusions, write_exclusions
from dataset.sequences import EVENT_ID, SPLITS
from dataset.sevir.reader import MISSING_FILE
from dataset.signs import UNFINISHED
from utils.log import format_table

logger = logging.getLogger(__name__)

MOST_LISTED = 100  # faults; the table counts all
MOST_REASON = 100  # characters
PASSING = {MISSING_FILE, UNFINISHED}  # kinds of faults that may be gone tomorrow


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


def fix(report: Report) -> list[Fault]:
    """Add what is at fault to the exclusions; returns the faults that remain: without a usable id, or of PASSING."""
    exclusions, remaining = read_exclusions(report.data_path), []
    for fault in report.faults:
        if EVENT_ID.fullmatch(fault.event) and fault.kind not in PASSING:
            reason = textwrap.shorten(f"{fault.kind}: {fault.detail}".rstrip(": "), MOST_REASON, placeholder=" ...")
            exclusions.setdefault(fault.event, reason)
        else:
            remaining.append(fault)
    path = write_exclusions(report.data_path, exclusions)
    logger.info("%s names %d items; %d faults remain", path, len(exclusions), len(remaining))
    return remaining


def format_report(report: Report) -> str:
    """Faults one by one, the first MOST_LISTED of them, and a table of all by split."""
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
