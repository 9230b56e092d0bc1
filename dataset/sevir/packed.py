"""The cache of SEVIR at working resolution, for fast training.

`build_dataset` finds the cache by itself. Its items equal those read directly, bit for bit. It serves every split and
split scheme. An interrupted run continues when it is started again, and events that have come since are added.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.cache import INDEX, RowCache, adding_to, rows_of
from dataset.hdf5 import file_size
from dataset.parallel import parallel_map
from dataset.sequences import EVENT_FRAMES, SPLITS, EventWindows
from dataset.sevir.catalog import SCHEMES, Event, files_root, is_synthetic, read_events
from dataset.sevir.reader import EventFiles, check_window, usable_events
from utils.errors import InputError

LOG = logging.getLogger(__name__)

FORMAT = 2  # raise it when a change of code changes the cached bytes
GONE = -1  # bytes of a file that is not there
IDENTITY = np.dtype([("id", "U64"), ("index", "<i8"), ("file_bytes", "<i8")])


class Packed(EventWindows):
    """Windows read from a cache, made by `open_packed`.

    Raises `InputError` on reading if the cache has vanished or was made anew since.
    """

    def __init__(
        self,
        cache: RowCache,
        rows: np.ndarray,  # of the events
        ids: Sequence[str],  # of the events
        skipped: dict[str, int],
        seq_len: int,  # frames
        stride: int,  # frames
        made: bool,  # by `dataset.synthetic.writer`
    ):
        super().__init__(ids, skipped, seq_len, stride, made)
        self._cache, self._rows = cache, rows

    def read(self, event: int, first: int, stop: int) -> Tensor:
        """Read frames of an event, uint8 `(stop - first, 1, H, W)`."""
        return torch.from_numpy(self._cache.array("events")[self._rows[event], first:stop, None].copy())


def row_cache(dataset: str, data_path: str | Path, img_size: int, packed_path: str | Path | None) -> RowCache:
    """The cache of a data set, inside `packed_path` or `<data_path>/packed`."""
    folder = Path(data_path, "packed") if packed_path is None else Path(packed_path)
    index = {"format": FORMAT, "dataset": dataset, "img_size": img_size}
    layout = {"events": (np.dtype("u1"), (EVENT_FRAMES, img_size, img_size))}
    return RowCache(folder / f"{dataset}_{img_size}", index, layout, IDENTITY)


def open_packed(
    dataset: str,
    split: str,
    data_path: str | Path,
    img_size: int,
    seq_len: int,
    stride: int | None,
    split_scheme: str,
    packed_path: str | Path | None = None,  # folder that holds the caches; default `<data_path>/packed`
) -> Packed | None:
    """Open the cache if it holds all usable events of a split.

    Events whose files are gone are read from the cache. Raises `InputError` if `packed_path` is given and holds no
    cache for these settings.
    """
    check_window(seq_len, stride, img_size)
    cache = row_cache(dataset, data_path, img_size, packed_path)
    if not (cache.folder / INDEX).is_file():
        if packed_path is not None:
            raise InputError(f"There is no packed cache {cache.folder}; pack it with --out {packed_path} first.")
        return None
    events, skipped = read_events(data_path, split, split_scheme)
    root = files_root(data_path)
    rows = _rows_of(_identities(events, root), cache.records())
    lacking, faults = usable_events(root, [event for event, row in zip(events, rows, strict=True) if row < 0])
    if lacking:
        text = "not using the packed cache %s: it lacks %d events of the %s split, such as %s; pack again"
        LOG.warning(text, cache.folder, len(lacking), split, lacking[0].id)
        return None
    ids = [event.id for event, row in zip(events, rows, strict=True) if row >= 0]
    if not ids:
        return None
    stride = stride or SCHEMES[split_scheme].stride
    packed = Packed(cache, rows[rows >= 0], ids, skipped + faults, seq_len, stride, is_synthetic(data_path))
    LOG.info("using the packed cache %s, %s: %s", cache.folder, split, packed.describe())
    return packed


def pack(
    dataset: str,
    data_path: str | Path,
    img_size: int = 128,
    packed_path: str | Path | None = None,  # folder that holds the caches; default `<data_path>/packed`
    workers: int = 0,  # processes that read and resize
) -> Path:
    """Add the missing events to the cache and return its folder.

    Several processes may call this at once: one packs, the others wait. Raises `InputError` for an unusable source, an
    unwritable folder or a full disk.
    """
    check_window(1, None, img_size)
    cache, root, events = (
        row_cache(dataset, data_path, img_size, packed_path),
        files_root(data_path),
        _events(data_path),
    )
    try:
        with adding_to(cache.folder):
            if not cache.fits():
                cache.begin()
            rows = _rows_of(_identities(events, root), cache.records())
            new, _ = usable_events(root, [event for event, row in zip(events, rows, strict=True) if row < 0])
            frames = _read_all(new, root, img_size, workers, "packing")
            cache.append(_identities(new, root), ((one.numpy(),) for one in frames))
    except OSError as error:
        raise InputError(f"Cannot write {cache.folder} ({error}); choose a folder with --out.") from error
    if not len(cache.records()):
        raise InputError(f"{data_path} has no usable event; download its files.")
    return cache.folder


def verify(
    dataset: str, data_path: str | Path, img_size: int, packed_path: str | Path | None, workers: int = 0
) -> list[str]:
    """Read the source again and return ids of events that differ.

    Raises `InputError` if the source no longer has the events that the cache was made from.
    """
    cache, root = row_cache(dataset, data_path, img_size, packed_path), files_root(data_path)
    events = _events(data_path)
    identities = _identities(events, root)
    rows = _rows_of(identities, cache.records())
    held = np.flatnonzero(rows >= 0)
    if (identities["file_bytes"][held] == GONE).any():
        raise InputError(f"{data_path} lacks files that {cache.folder} was packed from; restore them to verify.")
    sources = _read_all([events[number] for number in held], root, img_size, workers, "verifying")
    stored = cache.array("events")
    compared = zip(held, sources, strict=True)
    return [events[number].id for number, source in compared if not np.array_equal(stored[rows[number]], source)]


def _events(data_path: str | Path) -> list[Event]:
    """The complete events of all splits."""
    return [event for split in SPLITS for event in read_events(data_path, split, "official")[0]]


def _identities(events: Sequence[Event], root: Path) -> np.ndarray:
    sizes = {file: file_size(root / file) for file in dict.fromkeys(event.file for event in events)}
    sizes = {file: GONE if size is None else size for file, size in sizes.items()}
    return np.array([(event.id, event.index, sizes[event.file]) for event in events], IDENTITY)


def _rows_of(wanted: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Row of each event, -1 if it is new or has changed."""

    def unchanged(now: np.ndarray, then: np.ndarray) -> np.ndarray:
        # a file deleted after packing does no harm
        same_file = (now["file_bytes"] == GONE) | (now["file_bytes"] == then["file_bytes"])
        return same_file & (now["index"] == then["index"])

    return rows_of(wanted, records, "id", unchanged)


def _read_all(events: list[Event], root: Path, img_size: int, workers: int, description: str) -> Iterator[Tensor]:
    """All frames of each event, uint8 `(EVENT_FRAMES, H, W)`."""
    files = EventFiles(root, img_size, EVENT_FRAMES)
    return parallel_map(partial(_read, files), events, workers, description, "event")


def _read(files: EventFiles, event: Event) -> Tensor:
    return files.read(event, 0, EVENT_FRAMES)[:, 0]
