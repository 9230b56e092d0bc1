"""A cache of frames at working resolution.

A cache is a folder. `index.json` says what the rows were made from, each `<array>.bin` holds a part of every row, and
`records.bin` which item a row is of. A row counts once its record is there. An interrupted run therefore continues with
the missing rows, new items cost no more than themselves, and a training may read the cache meanwhile.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock

from dataset.hdf5 import reason_of
from utils.errors import InputError
from utils.files import held, replacing

LOG = logging.getLogger(__name__)

INDEX = "index.json"
BATCH = 64  # rows that are flushed together


class RowCache:
    """Rows of equal size in a folder; rows are only added.

    Each process that reads opens memory maps of its own. They are not pickled.
    """

    def __init__(
        self,
        folder: Path,
        index: dict,  # JSON-ready: what rows depend on, besides the items
        layout: dict[str, tuple[np.dtype, tuple[int, ...]]],  # type and shape of a row in each array
        identity: np.dtype,  # identifies an item and its version
    ):
        self.folder = folder
        self.index = index
        self.layout = layout
        self.record = np.dtype([*identity.descr, ("usable", "?")])
        self._rows = 0  # that were complete when the records were read
        self._digest = ""  # of their records
        self._arrays: dict[str, np.memmap] | None = None

    def fits(self) -> bool:
        """Whether there is a cache with this index."""
        return read_index(self.folder) == self.index

    def begin(self) -> None:
        """Begin anew, without a row."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        with replacing(self.folder / INDEX) as temporary:
            temporary.write_text(json.dumps(self.index), encoding="utf-8")

    def records(self) -> np.ndarray:
        """Read the records of complete rows, none if the index is another."""
        if not self.fits():
            return np.zeros(0, self.record)
        try:
            content = (self.folder / "records.bin").read_bytes()
            sizes = {name: self._path(name).stat().st_size for name in self.layout}
        except FileNotFoundError:
            return np.zeros(0, self.record)
        complete = [sizes[name] // _row_bytes(*row) for name, row in self.layout.items()]
        self._rows = min(len(content) // self.record.itemsize, *complete)
        self._digest = self._digest_of(content)
        return np.frombuffer(content, self.record, self._rows)

    def append(self, identities: np.ndarray, rows: Iterable[tuple[np.ndarray, ...] | None]) -> None:
        """Add rows.

        A row has a part for each array, or is None for an item that cannot be used. The disk holds a row before its
        record.
        """
        written, rows = len(self.records()), iter(rows)
        nothing = [np.zeros(shape, dtype) for dtype, shape in self.layout.values()]
        with contextlib.ExitStack() as stack:
            layout = self.layout | {"records": (self.record, ())}
            files = {name: stack.enter_context(self._path(name).open("ab")) for name in layout}
            for name, row in layout.items():
                files[name].truncate(written * _row_bytes(*row))  # what an interrupted run left behind
            for start in range(0, len(identities), BATCH):
                batch = np.zeros(min(BATCH, len(identities) - start), self.record)
                for field in identities.dtype.names:
                    batch[field] = identities[field][start : start + BATCH]
                for record, parts in zip(batch, islice(rows, len(batch)), strict=True):
                    record["usable"] = parts is not None
                    for name, part in zip(self.layout, parts or nothing, strict=True):
                        files[name].write(part.tobytes())
                for name in (*self.layout, "records"):
                    if name == "records":
                        files[name].write(batch.tobytes())
                    files[name].flush()
                    os.fsync(files[name].fileno())

    def array(self, name: str) -> np.memmap:
        """Map the rows of an array that have records into memory.

        Raises `InputError` if they have vanished or cannot be read, or if the cache was made anew meanwhile.
        """
        if self._arrays is None:
            self._arrays = self._open()
        return self._arrays[name]

    def _open(self) -> dict[str, np.memmap]:
        try:
            if not self.fits() or self._digest_of(self._path("records").read_bytes()) != self._digest:
                raise InputError(
                    f"The cache {self.folder} was made anew meanwhile, perhaps with other settings; start again."
                )
            return {
                name: np.memmap(self._path(name), dtype, "r", shape=(self._rows, *shape))
                for name, (dtype, shape) in self.layout.items()
            }
        except InputError:
            raise
        except (OSError, ValueError) as error:
            reason = reason_of(error, self.folder)
            raise InputError(f"Cannot read the cache {self.folder} ({reason}); delete it and start again.") from error

    def _digest_of(self, records: bytes) -> str:
        """Digest of the records of the rows that are in use, which do not change when rows are added."""
        return hashlib.sha256(records[: self._rows * self.record.itemsize]).hexdigest()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def __getstate__(self):
        return {**self.__dict__, "_arrays": None}  # pickling a memory map would copy the cache


@contextlib.contextmanager
def adding_to(folder: Path) -> Iterator[None]:
    """Let one process at a time change the cache in a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with held(FileLock(folder.parent / f".{folder.name}.lock"), folder):
        yield


def read_index(folder: Path) -> dict | None:
    """Read the index of a cache, None if there is no cache."""
    try:
        return json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def rows_of(
    wanted: np.ndarray,  # records of items
    records: np.ndarray,  # of rows
    key: str,  # field that identifies items
    unchanged: Callable[[np.ndarray, np.ndarray], np.ndarray],  # wanted and stored records -> bool
) -> np.ndarray:
    """Find the last row of each item, -1 if it is outdated."""
    if not len(records):
        return np.full(len(wanted), -1)
    order = np.argsort(records[key], kind="stable")
    last = np.searchsorted(records[key][order], wanted[key], "right") - 1
    rows = order[np.maximum(last, 0)]
    return np.where((records[key][rows] == wanted[key]) & unchanged(wanted, records[rows]), rows, -1)


def _row_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * int(np.prod(shape, dtype=int))
