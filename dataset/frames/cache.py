"""A cache of decoded frames, so that training reads bytes from a memory map and not pictures.

A cache is a folder: `index.json` says what it was made from; `levels.bin` and `valid.bin` hold a row per frame and
`records.bin` the time, size and modification time of the file that the row came from. Rows are only ever added, and a
row counts once its record is there. An interrupted run therefore goes on where it stopped, new frames cost no more than
themselves, and a training that reads the cache meanwhile is not disturbed.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import numpy as np
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from dataset.exclusions import exclusions_path, read_exclusions
from dataset.frames.config import FramesConfig
from dataset.frames.encoding import Encoder, Grid, fine_levels
from dataset.frames.names import find_frames, moment, on_marks, times_of
from dataset.hdf5 import AccessError, reason_of
from utils.errors import InputError
from utils.files import replacing

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it when a change of code changes the cached rows
IDENTITY = ("time", "size", "mtime")  # of the file that a row came from, by its name and the disk
RECORD = np.dtype([*((field, "<i8") for field in IDENTITY), ("state", "u1")])
WHOLE, PARTIAL, UNUSABLE = 1, 2, 3  # states of a row: all pixels valid, some, no frame at all
BATCH = 64  # frames that are decoded side by side and flushed together


class Cache:
    """The frames of a folder, in order of time, made by `open_cache`.

    Attributes: nominal `times` (int64 seconds since 1970, UTC) of the usable frames, `unusable` and `excluded` (numbers
    of files left out) and `encoder`.
    """

    def __init__(self, folder: Path, encoder: Encoder, found: np.ndarray, records: np.ndarray, rows: np.ndarray):
        usable = records["state"][rows] != UNUSABLE
        self.folder, self.encoder = folder, encoder
        self.times = found["mark"][usable]
        self.unusable, self.excluded = int(np.count_nonzero(~usable)), 0
        self._rows = rows[usable]
        self._maps: tuple[np.memmap, np.memmap] | None = None

    def read(self, frames: np.ndarray) -> Tensor:
        """Frames by their numbers in `times`: float32 `(T, 1, H, W)` in [0, 1], NaN where nothing is known."""
        if self._maps is None:
            self._maps = self._open()
        rows = self._rows[frames]
        levels, bits = (rows_of[rows] for rows_of in self._maps)
        valid = np.unpackbits(bits, axis=-1, count=levels.shape[-1]).view(bool)
        return self.encoder.decode(levels, valid)

    def _open(self) -> tuple[np.memmap, np.memmap]:
        count = int(self._rows.max()) + 1
        try:
            if _stored_encoder(self.folder, self.encoder.config, self.encoder.grid.size) != self.encoder:
                raise InputError(f"The cache {self.folder} was made anew with other settings meanwhile; start again.")
            return tuple(
                np.memmap(self.folder / f"{name}.bin", dtype, "r", shape=(count, *shape))
                for name, (dtype, shape) in _layout(self.encoder).items()
            )
        except InputError:
            raise
        except (OSError, ValueError) as error:
            reason = reason_of(error, self.folder)
            raise InputError(f"Cannot read the cache {self.folder} ({reason}); delete it and start again.") from error

    def __getstate__(self):
        return {**self.__dict__, "_maps": None}  # pickling a memory map would copy the whole cache


def open_cache(config: FramesConfig, img_size: int | tuple[int, int], packed_path: str | Path | None = None) -> Cache:
    """Open the cache of a folder's present frames; those that are new or changed are decoded first.

    It lies in `packed_path` or `<folder>/packed`, and is made anew if it was made with other settings. Several
    processes may call this at once: one decodes, the others wait. Raises `InputError` if there is no frame, the first
    frame cannot be used, or the cache cannot be written.
    """
    found, excluded = listed_frames(config)
    place = Path(packed_path) if packed_path else config.folder / "packed"
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    folder = place / f"frames_{config.folder.resolve().name}_{height}x{width}"
    try:
        cache = _current(folder, config, img_size, found)
        if cache is None:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(place / f".{folder.name}.lock"):
                cache = _current(folder, config, img_size, found) or _pack(folder, config, img_size, found)
    except OSError as error:
        raise InputError(
            f"Cannot use the cache {folder} ({error.strerror or error}); choose a place with --packed_path."
        ) from None
    if not len(cache.times):
        raise InputError(f"None of the {len(found)} frames in {config.folder} can be used.")
    cache.excluded = len(excluded)
    return cache


def listed_frames(config: FramesConfig) -> tuple[np.ndarray, np.ndarray]:
    """The frames of a folder (see `find_frames`) that count, and those that are excluded.

    Exclusions stand beside the YAML file, as in `frames.exclusions.txt`. Raises `InputError` if nothing is left.
    """
    found = find_frames(config.folder, config.pattern)
    excluded = np.isin(found["time"], times_of(read_exclusions(config.file)))
    if excluded.all():
        raise InputError(f"{exclusions_path(config.file)} excludes all {len(found)} frames in {config.folder}.")
    found["mark"], counts = on_marks(found["time"], excluded, round(60 * config.interval), config.tolerance)
    off, marks = found[~(counts | excluded)], f"{config.tolerance:g} s of a multiple of {config.interval:g} minutes"
    if not counts.any():
        raise InputError(f"{config.folder} has no frame within {marks}; correct interval or tolerance.")
    if len(off):
        name = config.pattern.name_of(moment(off["time"][0]))
        logger.warning(
            "%d frames in %s are left out, such as %s: they are not within %s, or another one is nearer to it",
            *(len(off), config.folder, name, marks),
        )
    return found[counts], found[excluded]


def _current(folder: Path, config: FramesConfig, img_size, found: np.ndarray) -> Cache | None:
    """The cache if it holds all the frames found, and one of them can be used."""
    encoder = _stored_encoder(folder, config, img_size)
    if encoder is None:
        return None
    records = _records(folder, encoder)
    rows = _rows_of(found, records)
    cache = None if (rows < 0).any() else Cache(folder, encoder, found, records, rows)
    return cache if cache and len(cache.times) else None


def _pack(folder: Path, config: FramesConfig, img_size, found: np.ndarray) -> Cache:
    """Add the frames that the cache lacks.

    If none is like the frame that the cache began with, which may be gone or excluded by now, it is made anew.
    """
    encoder = _stored_encoder(folder, config, img_size)
    cache = _completed(folder, encoder, found) if encoder else None
    if cache is None or not len(cache.times):
        encoder = Encoder.of(config, moment(found["time"][0]), img_size)
        shutil.rmtree(folder)
        folder.mkdir()
        with replacing(folder / "index.json") as temporary:
            temporary.write_text(json.dumps(_index(config, encoder)), encoding="utf-8")
        cache = _completed(folder, encoder, found)
    return cache


def _completed(folder: Path, encoder: Encoder, found: np.ndarray) -> Cache:
    _append(folder, encoder, found[_rows_of(found, _records(folder, encoder)) < 0])
    records = _records(folder, encoder)
    return Cache(folder, encoder, found, records, _rows_of(found, records))


def _append(folder: Path, encoder: Encoder, found: np.ndarray) -> None:
    """Decode frames and add their rows, a record last."""
    rows = _layout(encoder) | {"records": (RECORD, ())}
    written = len(_records(folder, encoder))
    faults: list[str] = []
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.bin", "ab")) for name in rows}
        for name, row in rows.items():
            files[name].truncate(written * _row_bytes(*row))  # what an interrupted run left behind
        pool = stack.enter_context(ThreadPoolExecutor())
        bar = stack.enter_context(tqdm(total=len(found), desc="packing", unit="frame", disable=None))
        for start in range(0, len(found), BATCH):
            batch = found[start : start + BATCH]
            _write(files, encoder, batch, list(pool.map(_attempt(encoder, faults), map(moment, batch["time"]))))
            bar.update(len(batch))
    if faults:
        logger.warning("%d frames cannot be used and count as gaps, for example: %s", len(faults), faults[0])


def _attempt(encoder: Encoder, faults: list[str]) -> Callable[[datetime], tuple[np.ndarray, np.ndarray] | None]:
    def encode(time: datetime) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            return encoder.encode(time)
        except AccessError:
            raise  # a row would say for good that the frame is at fault
        except InputError as error:
            faults.append(str(error))
            return None

    return encode


def _write(files: dict, encoder: Encoder, batch: np.ndarray, encoded: list) -> None:
    """Append a batch; the disk holds its rows before it holds its records."""
    nothing = np.zeros(encoder.grid.fitted, encoder.dtype), np.zeros(encoder.grid.fitted, bool)
    records = np.zeros(len(batch), RECORD)
    for field in IDENTITY:
        records[field] = batch[field]
    for record, frame in zip(records, encoded, strict=True):
        levels, valid = frame or nothing
        record["state"] = UNUSABLE if frame is None else WHOLE if valid.all() else PARTIAL
        files["levels"].write(levels.tobytes())
        files["valid"].write(np.packbits(valid, axis=-1).tobytes())
    for name in ("levels", "valid", "records"):
        if name == "records":
            files[name].write(records.tobytes())
        files[name].flush()
        os.fsync(files[name].fileno())


def _layout(encoder: Encoder) -> dict[str, tuple[np.dtype, tuple[int, int]]]:
    """Type and shape of a row in each file of frames."""
    height, width = encoder.grid.fitted
    return {"levels": (encoder.dtype, (height, width)), "valid": (np.dtype("u1"), (height, -(-width // 8)))}


def _row_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * int(np.prod(shape, dtype=int))


def _records(folder: Path, encoder: Encoder) -> np.ndarray:
    """The records of whole rows; one whose row is not there (a damaged cache) does not count."""
    try:
        content = (folder / "records.bin").read_bytes()
        sizes = {name: (folder / f"{name}.bin").stat().st_size for name in _layout(encoder)}
    except FileNotFoundError:
        return np.zeros(0, RECORD)
    whole = [sizes[name] // _row_bytes(*row) for name, row in _layout(encoder).items()]
    return np.frombuffer(content, RECORD, min(len(content) // RECORD.itemsize, *whole))


def _rows_of(found: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Row of each frame found, -1 for one that is not there or has changed since."""
    if not len(records):
        return np.full(len(found), -1)
    latest = np.lexsort((np.arange(len(records)), records["time"]))
    last = np.searchsorted(records["time"][latest], found["time"], "right") - 1
    rows = latest[np.maximum(last, 0)]
    same = np.logical_and.reduce([records[field][rows] == found[field] for field in IDENTITY])
    return np.where(same, rows, -1)


def _index(config: FramesConfig, encoder: Encoder) -> dict:
    """What the rows depend on, besides the files."""
    return {
        "format": FORMAT,
        "pattern": config.pattern.text,
        "variable": config.variable,
        "scale": config.scale,
        "offset": config.offset,
        "missing": list(config.missing),
        "units": config.units,  # which the files may contradict
        "range": list(config.range),
        "stored": list(encoder.grid.stored),
        "stored_type": encoder.stored_type,
        "levels": encoder.levels,
        "size": list(encoder.grid.size),
    }


def _stored_encoder(folder: Path, config: FramesConfig, img_size) -> Encoder | None:
    """The encoder of the cache in a folder; None if there is none or it was made with other settings."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        grid = Grid.fitting(tuple(index["stored"]), img_size)
        encoder = Encoder(config, grid, index["stored_type"], index["levels"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    fitting = encoder.levels in (255, fine_levels(config))
    return encoder if fitting and _index(config, encoder) == index else None
