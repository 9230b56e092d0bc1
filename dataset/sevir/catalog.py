"""Which SEVIR events exist, and to which split each belongs: reads CATALOG.csv.

Catalogue and splits: Veillette et al., "SEVIR: a storm event imagery dataset", NeurIPS 2020.
"""

import csv
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from dataset.exclusions import EXCLUSIONS, read_exclusions
from dataset.hdf5 import file_size, reason_of
from dataset.sequences import EVENT_ID, SPLITS, check_split
from utils.errors import InputError

COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")
BOX = ("llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon")  # degrees; read where given
EVENT_TYPE, SYNTHETIC_TYPE = "event_type", "Synthetic"  # what `dataset.synthetic.writer` calls its events

INCOMPLETE = "pct_missing is not 0"
REPEATED = "id occurs more than once"
UNREADABLE = "unreadable catalogue row"
EXCLUDED = f"excluded by {EXCLUSIONS}"


@dataclass(frozen=True)
class SplitScheme:
    """Begins of the splits (UTC) and stride of the windows.

    An event at time t belongs to train if t <= valid_after, to valid if valid_after < t <= test_after, else
    to test.
    """

    valid_after: datetime
    test_after: datetime
    stride: int  # frames

    def split_of(self, time: datetime) -> str:
        """Name of the split of an event at `time` (naive, UTC)."""
        return SPLITS[(time > self.valid_after) + (time > self.test_after)]


SCHEMES = {
    # the released code of DiffCast (Yu et al., CVPR 2024)
    "official": SplitScheme(datetime(2019, 1, 1), datetime(2019, 10, 1), stride=5),
    # Earthformer (Gao et al., NeurIPS 2022), CasCast and the text of the DiffCast paper
    "benchmark": SplitScheme(datetime(2019, 1, 1), datetime(2019, 6, 1), stride=12),
}


class Event(NamedTuple):
    """Where and when an event is."""

    id: str
    file: str  # relative to the folder that holds vil/
    index: int  # position in that file
    time: datetime  # naive, UTC


class Row(NamedTuple):
    """One vil row of the catalogue."""

    id: str
    event: Event | None  # None: the row cannot be read
    fault: str = ""  # why the event cannot be used; empty: it can
    detail: str = ""


def catalog_path(data_path: str | Path) -> Path:
    """Path of the catalogue; `InputError` if there is none."""
    folder, path = Path(data_path), Path(data_path, "CATALOG.csv")
    size = file_size(path)
    if size is None:
        if folder.is_dir():
            raise InputError(f"{folder} holds no CATALOG.csv; download SEVIR there or pass another data folder.")
        fault = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"The data folder {folder} {fault}; pass the folder that holds CATALOG.csv.")
    return path


def files_root(data_path: str | Path) -> Path:
    """Folder from which the catalogue's file names count."""
    data = Path(data_path, "data")
    return data if data.is_dir() else data.parent


def read_rows(data_path: str | Path) -> list[Row]:
    """Read all VIL rows and the faults of unusable ones.

    That is so for rows with missing pixels, events that `exclusions.txt` names, all copies of an id that occurs more
    than once among the complete rows, and rows that cannot be read. Raises `InputError` if the catalogue cannot.
    """
    rows, excluded = [], read_exclusions(data_path)
    for row in catalog_rows(data_path):
        try:
            event, missing = parse(row)
            rows.append(Row(event.id, event, INCOMPLETE if missing != 0 else ""))
        except (OverflowError, ValueError) as error:
            rows.append(Row(row["id"], None, UNREADABLE, str(error)))
    copies = Counter(row.id for row in rows if not row.fault)
    for number, row in enumerate(rows):
        if row.id in excluded and row.fault != INCOMPLETE:
            rows[number] = row._replace(fault=EXCLUDED)
        elif copies[row.id] > 1 and not row.fault:
            rows[number] = row._replace(fault=REPEATED, detail=f"{copies[row.id]} times")
    return rows


def read_events(data_path: str | Path, split: str, split_scheme: str) -> tuple[list[Event], Counter[str]]:
    """Read the usable events of a split; count other rows by reason.

    Rows whose time is unreadable count in every split. Raises `InputError` if the catalogue cannot be read or the split
    or scheme does not exist.
    """
    check_split(split)
    if split_scheme not in SCHEMES:
        raise InputError(f"Unknown split scheme '{split_scheme}'; choose one of {', '.join(SCHEMES)}.")
    splits = SCHEMES[split_scheme]
    rows = [row for row in read_rows(data_path) if row.event is None or splits.split_of(row.event.time) == split]
    return [row.event for row in rows if not row.fault], Counter(row.fault for row in rows if row.fault)


def is_synthetic(data_path: str | Path) -> bool:
    """Whether the catalogue names an event that `dataset.synthetic.writer` has made."""
    return any(row.get(EVENT_TYPE) == SYNTHETIC_TYPE for row in catalog_rows(data_path))


def catalog_rows(data_path: str | Path, types: Collection[str] = ("vil",)) -> Iterator[dict[str, str]]:
    """COLUMNS of rows of these types, and BOX and EVENT_TYPE if given."""
    path = catalog_path(data_path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
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


def parse(row: dict[str, str]) -> tuple[Event, float]:
    """Read the event of a row and its share of missing pixels.

    Raises `ValueError` or `OverflowError` if the row cannot be read.
    """
    time = datetime.fromisoformat(row["time_utc"])
    if time.tzinfo is not None:
        time = time.astimezone(timezone.utc).replace(tzinfo=None)
    if not (EVENT_ID.fullmatch(row["id"]) and row["file_name"].isprintable()):
        raise ValueError("an id or a file name that is no text")
    return Event(row["id"], row["file_name"], _integer(row["file_index"]), time), float(row["pct_missing"])


def _integer(text: str) -> int:
    """Read an integer, also `12.0`, as pandas writes columns with missing values."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(f"{text} is not an integer")
    return int(number)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"Cannot read the catalogue {path} ({reason_of(error, path)}); download it again.")
