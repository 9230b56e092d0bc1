"""Tiny folders in SEVIR's layout, and of frames."""

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.dataset.archive import Archive

COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")

TIMES = {  # one or two events a split, under both schemes
    "A": "2018-05-01 12:00:00",
    "B": "2018-12-31 23:55:00",
    "C": "2019-03-01 00:00:00",
    "D": "2019-11-01 06:00:00",
}


class SevirFolder:
    """A data folder to spoil: change `rows`, call `write_catalog`; or rewrite a file with `write_file`."""

    def __init__(self, path: Path, times: dict[str, str] = TIMES, size: int = 16):
        self.path, self.size = path, size
        self.rows, self.vil = [], {}
        by_year: dict[str, list[str]] = {}
        for event, time in times.items():
            by_year.setdefault(time[:4], []).append(event)
            self.add_row(event, f"vil/{time[:4]}/SEVIR_VIL_{time[:4]}.h5", len(by_year[time[:4]]) - 1, time)
        for year, events in by_year.items():
            self.write_file(f"vil/{year}/SEVIR_VIL_{year}.h5", events)
        self.write_catalog()

    def add_row(self, event, file_name, file_index, time, img_type="vil", pct_missing="0.0"):
        values = (event, file_name, file_index, img_type, time, pct_missing)
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))

    def row(self, event: str) -> dict:
        return next(row for row in self.rows if row["id"] == event)

    def file(self, event: str) -> Path:
        return self.path / "data" / self.row(event)["file_name"]

    def write_catalog(self, columns=COLUMNS):
        with open(self.path / "CATALOG.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)

    def write_file(self, name: str, events: list[str], shape=None, dtype=np.uint8, compression=None):
        path = self.path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (len(events), *(shape or (self.size, self.size, 49)))
        seed = int.from_bytes("".join(events).encode(), "big") % 2**32
        vil = np.random.default_rng(seed).integers(0, 255, shape).astype(dtype)
        with h5py.File(path, "w") as file:
            file["id"] = np.array(events, dtype="S")
            file.create_dataset("vil", data=vil, compression=compression)
        self.vil.update(zip(events, vil, strict=True))


@pytest.fixture
def sevir(tmp_path) -> SevirFolder:
    """Events A and B in train, C in valid, D in test; 16 x 16 pixels."""
    folder = tmp_path / "sevir"
    folder.mkdir()
    return SevirFolder(folder)


@pytest.fixture
def archive(tmp_path) -> Archive:
    """24 frames before 02:00 (training), 12 before 03:00 (validation), 12 after (test), bytes of 6 x 8 pixels."""
    (tmp_path / "radar").mkdir()
    return Archive(tmp_path / "radar").configure().add(range(48))
