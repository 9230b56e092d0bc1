"""Which SEVIR events exist, and to which split each belongs: reads CATALOG.csv.

A catalogue is read in bounded time and memory: at most `MAX_BYTES` and `MAX_LINES`, and at most ten bytes of memory
for each of its own.

Catalogue and splits: Veillette et al., "SEVIR: a storm event imagery dataset", NeurIPS 2020.
"""

import csv
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, TextIO

from dataset.exclusions import EXCLUSIONS, read_exclusions
from dataset.hdf5 import file_size, reason_of
from dataset.sequences import EVENT_ID, SPLITS, check_split
from utils.errors import InputError

COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")
BOX = ("llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon")  # degrees; read where given
EVENT_TYPE, SYNTHETIC_TYPE = "event_type", "Synthetic"  # what `dataset.synthetic.writer` calls its events

MAX_BYTES = 2**27  # three times SEVIR's own
MAX_LINES = 10**6  # SEVIR has 76,005 rows
MAX_LINE = 2**16  # characters

INCOMPLETE = "pct_missing is not 0"
REPEATED = "id occurs more than once"
UNREADABLE = "unreadable catalogue row"
OUTSIDE = "file lies outside the data folder"
EXCLUDED = f"excluded by {EXCLUSIONS}"


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
    """Path of the catalogue in a data folder; `InputError` if either is missing, or the catalogue too large."""
    folder, path = Path(data_path), Path(data_path, "CATALOG.csv")
    size = file_size(path)
    if size is None:
        if folder.is_dir():
            raise InputError(f"{folder} holds no CATALOG.csv; download SEVIR there or pass another data folder.")
        fault = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"The data folder {folder} {fault}; pass the folder that holds CATALOG.csv.")
    if size > MAX_BYTES:
        raise InputError(f"{path} is no catalogue: it has more than {MAX_BYTES} bytes; download it again.")
    return path


def files_root(data_path: str | Path) -> Path:
    """Folder from which the catalogue's file names count."""
    data = Path(data_path, "data")
    return data if data.is_dir() else data.parent


def read_events(data_path: str | Path, split: str, split_scheme: str) -> tuple[list[Event], Counter[str]]:
    """Read the complete VIL events of one split, in the catalogue's order.

    Left out are rows with missing pixels, events that `exclusions.txt` names, all copies of an id that occurs
    more than once among the complete rows, and rows that cannot be used safely. The second result counts the
    rows left out by reason; rows whose time is unreadable count in every split.

    Raises `InputError` if the catalogue cannot be read or the split or scheme does not exist.
    """
    check_split(split)
    if split_scheme not in SCHEMES:
        raise InputError(f"Unknown split scheme '{split_scheme}'; choose one of {', '.join(SCHEMES)}.")
    scheme, skipped, events = SCHEMES[split_scheme], Counter(), []
    excluded = read_exclusions(data_path)
    for row in catalog_rows(data_path):
        try:
            event, missing = parse(row)
        except (OverflowError, ValueError):
            skipped[EXCLUDED if row["id"] in excluded else UNREADABLE] += 1
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
        if event.id in excluded:
            skipped[EXCLUDED] += 1
        elif copies[event.id] > 1:
            skipped[REPEATED] += 1
        elif not is_inside(event.file):
            skipped[OUTSIDE] += 1
        else:
            kept.append(event)
    return kept, skipped


def is_synthetic(data_path: str | Path) -> bool:
    """Whether the catalogue names an event that `dataset.synthetic.writer` has made."""
    return any(row.get(EVENT_TYPE) == SYNTHETIC_TYPE for row in catalog_rows(data_path))


def catalog_rows(data_path: str | Path, types: Collection[str] = ("vil",)) -> Iterator[dict[str, str]]:
    """COLUMNS, and BOX and EVENT_TYPE if given, of the rows of some types; where a row is too short, empty texts."""
    path = catalog_path(data_path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(_lines(file, path))
            header = next(rows, [])
            if lacking := [column for column in COLUMNS if column not in header]:
                raise InputError(f"{path} lacks the column(s) {', '.join(lacking)}; download the catalogue again.")
            places = {column: header.index(column) for column in (*COLUMNS, *BOX, EVENT_TYPE) if column in header}
            kind = places["img_type"]
            for row in rows:
                if len(row) > kind and row[kind] in types:
                    yield {column: row[place] if place < len(row) else "" for column, place in places.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    for _ in range(MAX_LINES):
        line = file.readline(MAX_LINE)
        if len(line) == MAX_LINE:
            raise InputError(f"{path} is no catalogue: a line has {MAX_LINE} characters or more; download it again.")
        if not line:
            return
        yield line
    raise InputError(f"{path} is no catalogue: it has more than {MAX_LINES} lines; download it again.")


def parse(row: dict[str, str]) -> tuple[Event, float]:
    """The event that a row describes and its share of missing pixels; `ValueError` or `OverflowError` if it cannot."""
    time = datetime.fromisoformat(row["time_utc"])
    if time.tzinfo is not None:
        time = time.astimezone(timezone.utc).replace(tzinfo=None)
    if not (EVENT_ID.fullmatch(row["id"]) and row["file_name"].isprintable()):
        raise ValueError("an id or a file name that is no text")
    return Event(row["id"], row["file_name"], _whole(row["file_index"]), time), float(row["pct_missing"])


def _whole(text: str) -> int:
    """A whole number, also as `12.0`: pandas writes a column so that had a gap once."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(f"{text} is no whole number")
    return int(number)


def is_inside(file_name: str) -> bool:
    """Whether a file name of the catalogue stays in the data folder, on any operating system."""
    # judged by its text alone: symbolic links inside the data folder are the user's own and welcome
    paths = PurePosixPath(file_name), PureWindowsPath(file_name)
    return not any(path.root or path.drive or ".." in path.parts for path in paths)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"Cannot read the catalogue {path} ({reason_of(error, path)}); download it again.")
