"""Arrays in Zarr stores of format 2 and 3, which nobody vouches for.

They are decoded here, because libraries trust metadata and chunks. Only plain numbers are read.
https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
"""

import base64
import itertools
import json
import math
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.frames.archive.inflating import inflated
from dataset.frames.readers.limits import MAX_BYTES
from dataset.hdf5 import MAX_CHUNK, MAX_CHUNKS

MAX_METADATA, MAX_AXES = 2**20, 8  # bytes; axes of an array
COMPRESSORS = ("blosc", "zstd", "lz4", "gzip", "zlib")
KINDS = {f"{kind}{8 * size}": f"{kind[0]}{size}" for kind in ("int", "uint", "float") for size in (1, 2, 4, 8)}
MAX_PIECES = 2**17  # chunks of an axis
ABSENT = 2**64 - 1  # offset of a chunk that a shard lacks


@dataclass(frozen=True)
class Shard:
    """Shape of a shard, which is a file with many chunks, and where its index is."""

    shape: tuple[int, ...]
    at_end: bool


@dataclass(frozen=True)
class ZarrArray:
    """One array of a store, made by `open_array`."""

    path: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    fill: float | int
    dimensions: tuple[str, ...]
    attributes: dict[str, Any]
    codec: str | None  # one of COMPRESSORS
    order: tuple[int, ...]  # axes as stored
    checksum: bool  # of 4 bytes behind a chunk
    prefix: str  # of the names of chunks
    separator: str
    shard: Shard | None = None

    def read(self, begin: int, end: int) -> np.ndarray:
        """Read the rows from `begin` to `end` of the first axis.

        Raises ValueError if they are too large or damaged.
        """
        self._check_size(end - begin)
        plain = np.full((end - begin, *self.shape[1:]), self.fill, self.dtype)
        for place in itertools.product(range(begin // self.chunks[0], -(-end // self.chunks[0])), *self._places[1:]):
            content = self._content(place)
            if content is not None:
                low = [number * size for number, size in zip(place, self.chunks, strict=True)]
                above, low[0] = max(0, begin - low[0]), max(0, low[0] - begin)
                target = plain[tuple(slice(first, first + size) for first, size in zip(low, self.chunks, strict=True))]
                target = target[: self.chunks[0] - above]
                target[...] = self._decoded(content)[above:][tuple(slice(0, length) for length in target.shape)]
        return plain

    def file_of(self, place: tuple[int, ...]) -> Path:
        """The file that holds a chunk, if any does."""
        if self.shard:
            place = tuple(n * size // long for n, size, long in zip(place, self.chunks, self.shard.shape, strict=True))
        name = self.separator.join([*filter(None, [self.prefix]), *map(str, place)])
        return self.path / name

    @property
    def last(self) -> tuple[int, ...]:
        """Place of the last chunk."""
        return tuple(max(0, len(places) - 1) for places in self._places)

    @property
    def _places(self) -> list[range]:
        return [range(-(-length // size)) for length, size in zip(self.shape, self.chunks, strict=True)]

    @property
    def _chunk_bytes(self) -> int:
        return math.prod(self.chunks) * self.dtype.itemsize

    def _check_size(self, rows: int) -> None:
        size = rows * math.prod(self.shape[1:]) * self.dtype.itemsize
        touched = (rows // self.chunks[0] + 2) * math.prod(map(len, self._places[1:]))
        most = MAX_CHUNKS if len(self.shape) > 1 else MAX_PIECES
        if size > MAX_BYTES or self._chunk_bytes > MAX_CHUNK or touched > most:
            raise ValueError(f"its chunks {list(self.chunks)} of {list(self.shape)} values are too large or too many")

    def _content(self, place: tuple[int, ...]) -> bytes | None:
        """Stored bytes of a chunk, None if it is absent."""
        path, most = self.file_of(place), 2 * self._chunk_bytes + 1024
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"its chunk {path.name} is not a regular file")
        begin, size = self._place_in_shard(path, place, found.st_size) if self.shard else (0, found.st_size)
        if begin == ABSENT:
            return None
        if size > most:
            raise ValueError(f"a chunk of {self._chunk_bytes} bytes takes {size}")
        with path.open("rb") as file:
            file.seek(begin)
            return file.read(size)

    def _place_in_shard(self, path: Path, place: tuple[int, ...], size: int) -> tuple[int, int]:
        """Offset and size of a chunk in its shard."""
        counts = [long // short for long, short in zip(self.shard.shape, self.chunks, strict=True)]
        number = int(np.ravel_multi_index([n % count for n, count in zip(place, counts, strict=True)], counts))
        index = size - 4 - 16 * math.prod(counts) if self.shard.at_end else 0
        if index < 0:
            raise ValueError("a shard is not complete")
        with path.open("rb") as file:
            file.seek(index + 16 * number)
            return struct.unpack("<QQ", file.read(16))

    def _decoded(self, content: bytes) -> np.ndarray:
        content = content[:-4] if self.checksum else content
        plain = inflated(content, self.codec, self._chunk_bytes)
        if len(plain) != self._chunk_bytes:
            raise ValueError(f"a chunk holds {len(plain)} bytes instead of {self._chunk_bytes}")
        stored = np.frombuffer(plain, self.dtype).reshape([self.chunks[axis] for axis in self.order])
        return stored.transpose(np.argsort(self.order))


def open_array(path: Path) -> ZarrArray:
    """Open an array of a store.

    Raises ValueError if it is none, or holds other than plain numbers.
    """
    try:
        about = _json(path / "zarr.json")
        array = _version_3(path, about) if about else _version_2(path, _json(path / ".zarray"), _json(path / ".zattrs"))
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ValueError(f"the metadata of {path.name} are not those of an array of numbers") from None
    sizes = (*array.shape, *array.chunks)
    axes = {len(array.shape), len(array.chunks), len(array.order), len(array.dimensions)}
    if len(axes) > 1 or max(axes) > MAX_AXES or not all(0 <= size < 2**40 for size in sizes) or 0 in array.chunks:
        raise ValueError(f"its shape {list(array.shape)} and chunks {list(array.chunks)} are not possible")
    return array


def attributes_of_group(path: Path) -> dict[str, Any]:
    """Read the attributes of a store or of a group in it."""
    attributes = _json(path / "zarr.json").get("attributes") or _json(path / ".zattrs")
    return attributes if isinstance(attributes, dict) else {}


def _json(path: Path) -> dict:
    """Metadata, empty if they are absent."""
    try:
        if path.stat().st_size > MAX_METADATA:
            raise ValueError(f"its {path.name} has more than {MAX_METADATA} bytes")
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"its {path.name} is not an object of JSON")
    return found


def _version_2(path: Path, about: dict, attributes: dict) -> ZarrArray:
    if about.get("zarr_format") != 2:
        raise ValueError("it is not an array of Zarr")
    if about.get("filters"):
        raise ValueError("its filters are not supported")
    dtype, shape = about["dtype"], _numbers(about["shape"])
    if not isinstance(dtype, str) or dtype[:1] not in "<>|" or dtype[1:] not in KINDS.values():
        raise ValueError(f"its values are {dtype}, not plain numbers")
    axes = tuple(range(len(shape)))
    fill = about.get("fill_value")
    if fill is not None:
        attributes = attributes | {"_FillValue": _fill(fill)}
    return ZarrArray(
        path=path,
        shape=shape,
        chunks=_numbers(about["chunks"]),
        dtype=np.dtype(dtype),
        fill=_fill(fill or 0),
        dimensions=tuple(map(str, attributes.get("_ARRAY_DIMENSIONS", axes))),
        attributes=attributes,
        codec=_compressor([] if about["compressor"] is None else [about["compressor"]["id"]]),
        order=axes[::-1] if about.get("order") == "F" else axes,
        checksum=False,
        prefix="",
        separator=_separator(about.get("dimension_separator", ".")),
    )


def _version_3(path: Path, about: dict) -> ZarrArray:
    if about.get("zarr_format") != 3 or about.get("node_type") != "array":
        raise ValueError("it is not an array of Zarr")
    shape, chunks, codecs = _numbers(about["shape"]), _regular(about["chunk_grid"]), about["codecs"]
    shard = None
    if [codec["name"] for codec in codecs] == ["sharding_indexed"]:
        inner = codecs[0]["configuration"]
        if [codec["name"] for codec in inner["index_codecs"]] != ["bytes", "crc32c"]:
            raise ValueError("the index of its shards is not supported")
        shard, chunks = Shard(chunks, inner.get("index_location", "end") == "end"), _numbers(inner["chunk_shape"])
        if len(shard.shape) != len(chunks) or not all(map(_fits, shard.shape, chunks)):
            raise ValueError(f"its shards {list(shard.shape)} do not hold chunks {list(chunks)}")
        codecs = inner["codecs"]
    names = {codec["name"]: codec.get("configuration") or {} for codec in codecs}
    if about["data_type"] not in KINDS or "bytes" not in names:
        raise ValueError(f"its values are {about['data_type']}, not plain numbers")
    order = _numbers(names.get("transpose", {}).get("order", range(len(shape))))
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"the order {list(order)} of its axes is not possible")
    encoding = about["chunk_key_encoding"]
    default = encoding["name"] == "default"
    return ZarrArray(
        path=path,
        shape=shape,
        chunks=chunks,
        dtype=np.dtype((">" if names["bytes"].get("endian") == "big" else "<") + KINDS[about["data_type"]]),
        fill=_fill(about["fill_value"]),
        dimensions=tuple(map(str, about.get("dimension_names") or range(len(shape)))),
        attributes=_decoded_attributes(about),
        codec=_compressor([name for name in names if name not in ("bytes", "transpose", "crc32c")]),
        order=order,
        checksum="crc32c" in names,
        prefix="c" if default else "",
        separator=_separator((encoding.get("configuration") or {}).get("separator", "/" if default else ".")),
        shard=shard,
    )


def _decoded_attributes(about: dict) -> dict:
    """Attributes, in which xarray encodes the fill value of real numbers."""
    attributes = dict(about.get("attributes") or {})
    fill = attributes.get("_FillValue")
    if isinstance(fill, str) and about["data_type"].startswith("float"):
        attributes["_FillValue"] = struct.unpack("<d", base64.b64decode(fill))[0]
    return attributes


def _regular(grid: dict) -> tuple[int, ...]:
    if grid["name"] != "regular":
        raise ValueError(f"its chunk grid {grid['name']} is not supported")
    return _numbers(grid["configuration"]["chunk_shape"])


def _fits(long: int, short: int) -> bool:
    return short > 0 and long % short == 0


def _compressor(names: list[str]) -> str | None:
    if len(names) > 1 or not {*names} <= {*COMPRESSORS}:
        found = ", ".join(map(str, names))
        raise ValueError(f"its codecs {found} are not supported; use one of {', '.join(COMPRESSORS)}")
    return names[0] if names else None


def _separator(text: str) -> str:
    if text not in (".", "/"):
        raise ValueError(f"its separator {text!r} is not possible")
    return text


def _numbers(values: Any) -> tuple[int, ...]:
    values = tuple(values)
    if not all(type(value) is int for value in values):
        raise ValueError(f"{list(values)} are not integers")
    return values


def _fill(value: Any) -> float | int:
    return value if isinstance(value, int) else float(value)
