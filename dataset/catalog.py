"""Which SEVIR events exist, and to which split each belongs: reads CATALOG.csv.

Catalogue and splits: Veillette et al., "SEVIR: a storm event imagery dataset", NeurIPS 2020.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError

SPLITS = ("train", "valid", "test")
COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")

INCOMPLETE = "pct_missing is not 0"
REPEATED = "id occurs more than once"
UNREADABLE = "unreadable catalogue row"
OUTSIDE = "file lies outside the data folder"


@dataclass(frozen=True)
class SplitScheme:
    """Where the splits begin (UTC) and how far apart the windows of an event start.

    An event at time t belongs to train if t <= valid_after, to valid if valid_after < t <= test_after, else
    to test.
    """

    valid_after: datetime
    test_after: datetime
    stride: int  # frames

    def split_of(self, time: datetime) -> str:
        """Name of the split that an event at `time` (naive, UTC) belongs to."""
        return SPLITS[(time > self.valid_after) + (time > self.test_after)]


SCHEMES = {
    # the released code of DiffCast (Yu et al., CVPR 2024)
    "official": SplitScheme(datetime(2019, 1, 1), datetime(2019, 10, 1), stride=5),
    # Earthformer (Gao et al., NeurIPS 2022), CasCast and the text of the DiffCast paper
    "benchmark": SplitScheme(datetime(2019, 1, 1), datetime(2019, 6, 1), stride=12),
}


class Event(NamedTuple):
    """One usable vil row of the catalogue."""

    id: str
    file: str  # relative to the folder that holds vil/
    index: int  # position in that file
    time: datetime  # naive, UTC


def catalog_path(data_path: str | Path) -> Path:
    """Path of the catalogue in a data folder; `InputError` if the folder or the catalogue is missing."""
    folder = Path(data_path)
    if not folder.is_dir():
        raise InputError(f"The data folder {folder} does not exist; pass the folder that holds CATALOG.csv.")
    path = folder / "CATALOG.csv"
    if not path.is_file():
        raise InputError(f"{folder} holds no CATALOG.csv; download SEVIR there or pass another data folder.")
    return path


def fingerprint(data_path: str | Path) -> str:
    """SHA-256 of the catalogue's bytes, in hexadecimal."""
    path = catalog_path(data_path)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_events(data_path: str | Path, split: str, split_scheme: str) -> tuple[list[Event], Counter[str]]:
    """Read the complete VIL events of one split, in the catalogue's order.

    Left out are rows with missing pixels, all copies of an id that occurs more than once among the complete
    rows, and rows that cannot be used safely. The second result counts the rows left out by reason; rows
    whose time is unreadable count in every split.

    Raises `InputError` if the catalogue cannot be read or the split or scheme does not exist.
    """
    if split not in SPLITS:
        raise InputError(f"Unknown split '{split}'; choose one of {', '.join(SPLITS)}.")
    if split_scheme not in SCHEMES:
        raise InputError(f"Unknown split scheme '{split_scheme}'; choose one of {', '.join(SCHEMES)}.")
    scheme, skipped, events = SCHEMES[split_scheme], Counter(), []
    for row in _vil_rows(catalog_path(data_path)):
        try:
            event, missing = _parse(row)
        except (TypeError, ValueError):
            skipped[UNREADABLE] += 1
            continue
        if missing == 0:
            events.append(event)
        elif scheme.split_of(event.time) == split:
            skipped[INCOMPLETE] += 1

    copies = Counter(event.id for event in events)
    kept = []
    for event in events:
        if scheme.split_of(event.time) != split:
            continue
        if copies[event.id] > 1:
            skipped[REPEATED] += 1
        elif not _is_inside(event.file):
            skipped[OUTSIDE] += 1
        else:
            kept.append(event)
    return kept, skipped


def _vil_rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lacking = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if lacking:
                raise InputError(f"{path} lacks the column(s) {', '.join(lacking)}; download the catalogue again.")
            yield from (row for row in reader if row["img_type"] == "vil")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _parse(row: dict[str, str]) -> tuple[Event, float]:
    time = datetime.fromisoformat(row["time_utc"])
    if time.tzinfo is not None:
        time = time.astimezone(timezone.utc).replace(tzinfo=None)
    return Event(row["id"], row["file_name"], int(row["file_index"]), time), float(row["pct_missing"])


def _is_inside(file_name: str) -> bool:
    # judged by its text alone: symbolic links inside the data folder are the user's own and welcome
    path = Path(file_name)
    return not path.is_absolute() and not path.drive and ".." not in path.parts


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"Cannot read the catalogue {path} ({error}); download it again.")
