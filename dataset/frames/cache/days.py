"""The frames of a day in one file, compressed in chunks, with counts of their wet pixels.

A file is in the safetensors format, which maps it into memory and finds truncated files. A chunk is `DEPTH` frames of a
block of pixels, compressed by Blosc. Frames have few different values: a chunk holds bytes, which are places in a
palette of the levels that occur. The file describes itself: settings and the identity of each frame are in it, so that
many processes may make days without locks.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange
from numcodecs import blosc
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dataset.frames.cache.encoding import MISSING
from dataset.hdf5 import reason_of
from utils.errors import InputError
from utils.files import replacing

BLOCK = 32  # pixels: side of a chunk and of the blocks whose pixels are counted
DEPTH = 12  # frames of a chunk
CODEC = (b"zstd", 1)  # reads as fast as level 3 and writes three times faster
RECORD = np.dtype([(field, "<i8") for field in ("time", "size", "mtime", "usable")])
FAULTS = (OSError, SafetensorError, KeyError, IndexError, ValueError, RuntimeError)

blosc.use_threads = False  # chunks are small, and several processes and threads read them


class Contents(NamedTuple):
    """What a day's file says about its frames."""

    settings: str  # that the levels depend on
    records: np.ndarray  # of RECORD, a row per frame, by time
    seen: np.ndarray  # bool (rows, columns): blocks with a valid pixel in any frame


class Slab(NamedTuple):
    """`DEPTH` frames, compressed."""

    palette: np.ndarray  # uint16, the levels that occur
    chunks: list[bytes]  # a block each, row by row
    counts: np.ndarray  # uint16 (T, 2, rows, columns): valid and wet pixels of blocks


def blocks(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of blocks that cover frames `(height, width)`."""
    return -(-size[0] // BLOCK), -(-size[1] // BLOCK)


def compress(levels: np.ndarray, wet: Callable[[np.ndarray], np.ndarray]) -> Slab:
    """Compress at most `DEPTH` frames, uint16 `(T, H, W)`.

    `wet` says which of an array of levels count as rain.
    """
    rows, columns = blocks(levels.shape[1:])
    occurs = np.zeros(MISSING + 1, bool)
    occurs[levels.ravel()] = occurs[MISSING] = True
    palette = np.flatnonzero(occurs).astype("<u2")
    kind = np.dtype("u1" if len(palette) <= 256 else "<u2")
    codes = np.full((DEPTH, rows * BLOCK, columns * BLOCK), len(palette) - 1, kind)
    codes[tuple(map(slice, levels.shape))] = (np.cumsum(occurs) - 1).astype(kind)[levels]
    blocked = np.ascontiguousarray(rearrange(codes, "t (r h) (c w) -> r c t (h w)", h=BLOCK, w=BLOCK))
    counts = np.stack([mask[blocked].sum(-1, dtype=np.uint16) for mask in (palette != MISSING, wet(palette))])
    shuffle = blosc.SHUFFLE if kind.itemsize > 1 else blosc.NOSHUFFLE
    chunks = [blosc.compress(chunk, *CODEC, shuffle) for chunk in blocked.reshape(rows * columns, -1)]
    return Slab(palette, chunks, np.ascontiguousarray(rearrange(counts, "k r c t -> t k r c"))[: len(levels)])


def write_day(path: Path, settings: str, records: np.ndarray, slabs: Iterable[Slab]) -> None:
    """Write a day's file, complete or not at all. `records` may be filled in while slabs are made."""
    slabs = list(slabs)
    counts = np.concatenate([slab.counts for slab in slabs])
    ends = np.cumsum([len(chunk) for slab in slabs for chunk in slab.chunks]).reshape(len(slabs), *counts.shape[2:])
    bounds = np.stack([np.append(0, ends.ravel()[:-1]).reshape(ends.shape), ends], axis=-1)
    with replacing(path) as temporary:
        content = {
            "records": records.view("<i8").reshape(len(records), -1),
            "palettes": np.concatenate([slab.palette for slab in slabs]),
            "palette_ends": np.cumsum([len(slab.palette) for slab in slabs]),
            "chunks": np.frombuffer(b"".join(chunk for slab in slabs for chunk in slab.chunks), np.uint8),
            "bounds": bounds,
            "counts": counts,
            "seen": counts[:, 0].any(axis=0),
        }
        temporary.write_bytes(save(content, {"settings": settings}))


def read_contents(path: Path) -> Contents | None:
    """Read what a day's file says, None if there is no intact one.

    Raises `OSError` if the system refuses to read the file, which is then not at fault.
    """
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return None
    with contextlib.suppress(*FAULTS), safe_open(path, framework="numpy") as file:
        records, seen = (file.get_tensor(name) for name in ("records", "seen"))
        shapes = [tuple(file.get_slice(name).get_shape()) for name in ("counts", "bounds")]
        slabs = -(-len(records) // DEPTH)
        if shapes == [(len(records), 2, *seen.shape), (slabs, *seen.shape, 2)]:
            return Contents(file.metadata()["settings"], records.view(RECORD).reshape(len(records)), seen)
    return None


def read_counts(path: Path, settings: str, times: np.ndarray) -> np.ndarray:
    """Valid and wet pixels of the blocks of frames, uint16 `(T, 2, rows, columns)`.

    Raises `InputError` if the file has changed or is damaged.
    """
    with _opened(path, settings) as file:
        places = _places(file, times)
        return file.get_slice("counts")[places[0] : places[-1] + 1][places - places[0]]


def read_day(
    path: Path,
    settings: str,
    times: np.ndarray,  # seconds since 1970, rising
    rows: range,  # of blocks
    columns: range,
    values: Callable[[np.ndarray], np.ndarray],  # levels -> float32
    out: np.ndarray,  # float32 (T, rows * BLOCK, columns * BLOCK), to be filled
) -> None:
    """Read values of blocks of frames into an array.

    Raises `InputError` if the file has changed or is damaged.
    """
    blocked = out.reshape(len(times), len(rows), BLOCK, len(columns), BLOCK)
    with _opened(path, settings) as file:
        places = _places(file, times)
        ends, palettes = file.get_tensor("palette_ends"), file.get_tensor("palettes")
        for slab in range(places[0] // DEPTH, places[-1] // DEPTH + 1):
            palette = palettes[ends[slab - 1] if slab else 0 : ends[slab]]
            codes = _codes(file, slab, rows, columns, len(palette))
            inside = np.flatnonzero(places // DEPTH == slab)
            codes = codes.transpose(2, 0, 3, 1, 4)[places[inside] % DEPTH]
            # "clip" lets `take` write in place
            np.take(values(palette), codes, out=blocked[inside[0] : inside[-1] + 1], mode="clip")


def _codes(file: safe_open, slab: int, rows: range, columns: range, number: int) -> np.ndarray:
    """Codes of the blocks of a slab, `(rows, columns, DEPTH, BLOCK, BLOCK)`."""
    shape = len(rows), len(columns), DEPTH, BLOCK, BLOCK
    codes = np.empty(shape, "u1" if number <= 256 else "<u2")
    bounds = file.get_slice("bounds")[slab, rows.start : rows.stop, columns.start : columns.stop]
    chunks = file.get_slice("chunks")
    for of_row, target in zip(bounds, codes, strict=True):
        first = of_row[0, 0]
        stored = chunks[first : of_row[-1, 1]]
        for (begin, end), chunk in zip(of_row - first, target, strict=True):
            blosc.decompress(stored[begin:end], chunk)
    return codes


def _places(file: safe_open, times: np.ndarray) -> np.ndarray:
    """Rows of frames in a file, which must have them."""
    stored = file.get_tensor("records")[:, 0]
    places = np.searchsorted(stored, times)
    if (stored[places] != times).any():
        raise ValueError("it has other frames than before")
    return places


@contextlib.contextmanager
def _opened(path: Path, settings: str) -> Iterator[safe_open]:
    """Open a day's file that has the given settings."""
    try:
        with safe_open(path, framework="numpy") as file:
            if file.metadata()["settings"] != settings:
                raise InputError(
                    f"The cache {path.parent} was made anew meanwhile, perhaps with other settings; start again."
                )
            yield file
    except InputError:
        raise
    except FAULTS as error:
        reason = reason_of(error, path)
        raise InputError(f"Cannot read the cache {path} ({reason}); delete it and start again.") from error
