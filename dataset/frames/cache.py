"""The cache of decoded frames, which training reads in place of files."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from dataset.cache import BATCH, RowCache, adding_to, read_index, rows_of
from dataset.exclusions import exclusions_path, read_exclusions
from dataset.frames.archive import archive_of
from dataset.frames.config import FramesConfig
from dataset.frames.encoding import Encoder, Grid, fine_levels
from dataset.frames.names import moment, on_marks, times_of
from dataset.hdf5 import AccessError
from utils.errors import InputError

LOG = logging.getLogger(__name__)

FORMAT = 4  # raise it when a change of code changes the cached rows
IDENTITY = np.dtype([(field, "<i8") for field in ("time", "size", "mtime")])  # of the file that a row came from


class Cache:
    """The frames of a folder, in order of time, made by `open_cache`.

    Attributes: nominal `times` (int64 seconds since 1970, UTC) of the usable frames, `unusable` and `excluded` (numbers
    of files left out) and `encoder`.
    """

    def __init__(self, encoder: Encoder, rows: RowCache, found: np.ndarray, excluded: int):
        records = rows.records()
        own = _rows_of(found, records)
        usable = (own >= 0) & np.append(records["usable"], False)[own]
        self.complete = bool((own >= 0).all())
        self.encoder, self.times, self.excluded = encoder, found["mark"][usable], excluded
        self.unusable = int(np.count_nonzero(~usable))
        self._cache, self._rows = rows, own[usable]

    def read(self, frames: np.ndarray) -> Tensor:
        """Read frames by their numbers in `times`.

        They are float32 `(T, 1, H, W)` in [0, 1], NaN where no data is valid.
        """
        levels, bits = (self._cache.array(name)[self._rows[frames]] for name in ("levels", "valid"))
        valid = np.unpackbits(bits, axis=-1, count=levels.shape[-1]).view(bool)
        return self.encoder.decode(levels, valid)


def open_cache(config: FramesConfig, img_size: tuple[int, int], packed_path: str | Path | None = None) -> Cache:
    """Open the cache of a folder and decode new or changed frames.

    It lies in `packed_path` or `<folder>/packed`, and is made anew if it was made with other settings. Several
    processes may call this at once: one decodes, the others wait. Raises `InputError` if there is no frame, the first
    frame cannot be used, or the cache cannot be written.
    """
    found, excluded = listed_frames(config)
    caches = Path(packed_path) if packed_path else config.folder / "packed"
    folder = caches / f"frames_{config.folder.resolve().name}_{img_size[0]}x{img_size[1]}"
    try:
        cache = _current(folder, config, img_size, found, len(excluded))
        if cache is None or not cache.complete:
            cache = _packed(folder, config, img_size, found, len(excluded))
    except OSError as error:
        raise InputError(
            f"Cannot use the cache {folder} ({error.strerror or error}); choose a place with --packed_path."
        ) from None
    if not len(cache.times):
        raise InputError(f"None of the {len(found)} frames in {config.folder} can be used.")
    return cache


def listed_frames(config: FramesConfig) -> tuple[np.ndarray, np.ndarray]:
    """List the frames of a folder that count, and the excluded ones.

    Exclusions are next to the YAML file, as in `frames.exclusions.txt`. Raises `InputError` if nothing is left.
    """
    archive = archive_of(config)
    found = archive.find()
    excluded = np.isin(found["time"], times_of(read_exclusions(config.file)))
    if excluded.all():
        raise InputError(f"{exclusions_path(config.file)} excludes all {len(found)} frames in {config.folder}.")
    found["mark"], counts = on_marks(found["time"], excluded, round(60 * config.interval), config.tolerance)
    off, marks = found[~(counts | excluded)], f"{config.tolerance:g} s of a multiple of {config.interval:g} minutes"
    if not counts.any():
        raise InputError(f"{config.folder} has no frame within {marks}; correct interval or tolerance.")
    if len(off):
        LOG.warning(
            "%d frames in %s are left out, such as %s: they are not within %s, or another one is nearer to it",
            *(len(off), config.folder, archive.name_of(moment(off["time"][0])).name, marks),
        )
    return found[counts], found[excluded]


def _current(
    folder: Path, config: FramesConfig, img_size: tuple[int, int], found: np.ndarray, excluded: int
) -> Cache | None:
    """The cache if it has these settings and a usable frame."""
    encoder = _stored_encoder(folder, config, img_size)
    cache = Cache(encoder, _row_cache(folder, encoder), found, excluded) if encoder else None
    return cache if cache and len(cache.times) else None


def _packed(folder: Path, config: FramesConfig, img_size: tuple[int, int], found: np.ndarray, excluded: int) -> Cache:
    """The cache with the frames that it lacked.

    If none is like the frame that the cache began with, which may be gone or excluded by now, it is made anew.
    """
    with adding_to(folder):
        encoder = _stored_encoder(folder, config, img_size)
        if encoder:
            _append(encoder, _row_cache(folder, encoder), found)
            cache = _current(folder, config, img_size, found, excluded)
            if cache:
                return cache
        encoder = Encoder.of(config, moment(found["time"][0]), img_size)
        rows = _row_cache(folder, encoder)
        rows.begin()
        _append(encoder, rows, found)
        return Cache(encoder, rows, found, excluded)


def _append(encoder: Encoder, rows: RowCache, found: np.ndarray) -> None:
    """Decode the frames that are not there yet and add them."""
    new = found[_rows_of(found, rows.records()) < 0]
    faults: list[str] = []
    with tqdm(total=len(new), desc="packing", unit="frame", disable=None) as bar:
        rows.append(new[list(IDENTITY.names)], _encoded(encoder, new["time"], faults, bar))
    if faults:
        LOG.warning("%d frames cannot be used and count as gaps, for example: %s", len(faults), faults[0])


def _encoded(encoder: Encoder, times: np.ndarray, faults: list[str], bar: tqdm) -> Iterator[tuple | None]:
    """Levels and packed validity of each frame, None if it is unusable."""

    def encode(time: int) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            levels, valid = encoder.encode(moment(time))
        except AccessError:
            raise  # a row would say for good that the frame is at fault
        except InputError as error:
            faults.append(str(error))
            return None
        return levels, np.packbits(valid, axis=-1)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(times), BATCH):
            yield from pool.map(encode, times[start : start + BATCH])
            bar.update(min(BATCH, len(times) - start))


def _row_cache(folder: Path, encoder: Encoder) -> RowCache:
    height, width = encoder.grid.fitted
    layout = {"levels": (encoder.dtype, (height, width)), "valid": (np.dtype("u1"), (height, -(-width // 8)))}
    return RowCache(folder, _index(encoder), layout, IDENTITY)


def _rows_of(found: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Row of each frame, -1 if it is new or has changed."""
    return rows_of(found, records, "time", lambda a, b: (a["size"] == b["size"]) & (a["mtime"] == b["mtime"]))


def _index(encoder: Encoder) -> dict:
    """What the rows depend on, besides the files."""
    config, transform = encoder.config, encoder.source.transform
    return {
        "format": FORMAT,
        "pattern": config.pattern.text,
        "timezone": str(config.timezone),
        "format_of_files": config.format,
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
        **({"transform": asdict(transform)} if transform else {}),
    }


def _stored_encoder(folder: Path, config: FramesConfig, img_size: tuple[int, int]) -> Encoder | None:
    """The encoder of a cache, None if the cache has other settings."""
    index = read_index(folder)
    try:
        grid = Grid.fitting(tuple(index["stored"]), img_size)
        encoder = Encoder(config, grid, index["stored_type"], index["levels"])
    except (KeyError, TypeError):
        return None
    fitting = encoder.levels in (255, fine_levels(config))
    return encoder if fitting and _index(encoder) == index else None
