"""Decompression to no more than was declared.

https://www.rfc-editor.org/rfc/rfc8878 (Zstandard), https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
"""

import struct
import zlib

import numcodecs

from dataset.hdf5 import MAX_INFLATED

SLACK = 64  # bytes that a container may add to the declared ones
BLOSC_HEADER, ZSTD_MAGIC, ZSTD_BLOCK = 16, b"\x28\xb5\x2f\xfd", 2**17
SHORTEST = {"blosc": BLOSC_HEADER, "zstd": 6, "lz4": 4}


def inflated(content: bytes, codec: str | None, most: int) -> bytes:
    """Decompress a chunk of a Zarr store.

    Codecs are None, `blosc`, `zstd`, `lz4`, `gzip` and `zlib`. Raises ValueError if the chunk holds more than `most`
    bytes or is damaged.
    """
    if codec is None:
        return content
    if len(content) < SHORTEST.get(codec, 0):
        raise ValueError("a chunk is not complete")
    if codec in ("gzip", "zlib"):
        return _inflated_by_zlib(content, most)
    size = {"blosc": _size_of_blosc, "zstd": _size_of_zstd, "lz4": _size_of_lz4}[codec](content)
    if size > most + SLACK:
        raise ValueError(f"a chunk of {most} bytes inflates to {size}")
    return bytes(numcodecs.get_codec({"id": codec}).decode(content))


def _inflated_by_zlib(content: bytes, most: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either header
    plain = decompressor.decompress(content, most + SLACK)
    if not decompressor.eof:
        raise ValueError(f"a chunk of {most} bytes inflates to more, or is not complete")
    return plain


def _size_of_blosc(content: bytes) -> int:
    size, _, stored = struct.unpack_from("<III", content, 4)
    if stored != len(content):
        raise ValueError("a chunk is not complete")
    return size


def _size_of_lz4(content: bytes) -> int:
    return struct.unpack_from("<I", content)[0]


def _size_of_zstd(content: bytes) -> int:
    """Declared size of a frame, 0 if it declares none."""
    if not content.startswith(ZSTD_MAGIC):
        raise ValueError("a chunk is not Zstandard")
    about = content[4]
    single, digits = about >> 5 & 1, (0, 2, 4, 8)[about >> 6]
    digits = digits or single
    begin = 6 - single + (0, 1, 2, 4)[about & 3]
    if digits:
        return int.from_bytes(content[begin : begin + digits], "little") + 256 * (digits == 2)
    _check_blocks(content, begin + digits, about >> 2 & 1)
    return 0


def _check_blocks(content: bytes, begin: int, checksum: int) -> None:
    """Raise ValueError unless this is one frame whose blocks cannot hold too much."""
    blocks, last = 0, 0
    while not last and begin + 3 <= len(content):
        header = int.from_bytes(content[begin : begin + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        begin += 3 + (1 if kind == 1 else size)  # a block of one repeated byte
        blocks += 1
    if not last or begin + 4 * checksum != len(content) or blocks * ZSTD_BLOCK > MAX_INFLATED:
        raise ValueError("a chunk is not one complete frame of Zstandard, or inflates to too much")
