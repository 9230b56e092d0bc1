"""A frame from a file of any format.

The file may be compressed by gzip. No file is trusted. Sizes are checked before memory is used.
"""

import contextlib
import gzip
import tempfile
import tokenize
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from dataset.frames.archive.tars import Member
from dataset.frames.config import FramesConfig
from dataset.frames.readers import READERS, WITH_VARIABLES, format_of
from dataset.frames.readers.limits import MAX_BYTES
from dataset.frames.values import Metadata, StoredFrame, agreed, physical
from dataset.hdf5 import patiently, reason_of
from utils.errors import InputError

GZIP, BLOCK = b"\x1f\x8b", 2**20
FAULTS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SyntaxError, OverflowError, EOFError, zlib.error)
FAULTS += (tokenize.TokenError,)  # which NumPy's reading of a header may end in


def read_frame(path: Path, config: FramesConfig, member: Member | None = None) -> StoredFrame:
    """Read a frame in physical units, from a file or a member of a tar.

    Dry pixels have the lowest value of the range, missing ones are NaN. Raises `InputError` that names the file if it
    is damaged, too large, not a single frame, or contradicts `frames.yaml`.
    """
    return framed(path, config, lambda: _read(path, config, member))


def framed(path: Path, config: FramesConfig, read: Callable[[], tuple[np.ndarray, Metadata]]) -> StoredFrame:
    """The frame in physical units that a call of `read` gives, as `read_frame` does."""
    try:
        with np.errstate(all="ignore"):  # absurd scales
            stored, metadata = patiently(read)
            frame = physical(stored, agreed(path, metadata, config))
    except InputError:
        raise
    except FAULTS as error:
        raise InputError(f"{path} cannot be used ({reason_of(error, path)}); replace or remove it.") from None
    frame.values[np.isneginf(frame.values)] = config.range[0]
    return frame


def _read(path: Path, config: FramesConfig, member: Member | None) -> tuple[np.ndarray, Metadata]:
    with extracted(path, member) as file, plain_file(file) as plain:
        found = format_of(plain)
        if config.format and config.format != found:
            raise InputError(f"{path}: format is {found} there but {config.format} in {config.file}; remove it there.")
        if config.variable and found not in WITH_VARIABLES:
            raise InputError(f"{path}: {found} has no datasets with names; remove variable from {config.file}.")
        stored, metadata = READERS[found](plain, config.variable)
        return stored, replace(metadata, format=found)


@contextlib.contextmanager
def plain_file(path: Path) -> Iterator[Path]:
    """The file, or a temporary one with its decompressed content."""
    with path.open("rb") as file:
        compressed = file.read(len(GZIP)) == GZIP
    if not compressed:
        yield path
        return
    with temporary(path) as plain:
        with gzip.open(path) as content:
            while block := content.read(BLOCK):
                plain.write(block)
                if plain.tell() > MAX_BYTES:
                    raise ValueError(f"its content is larger than {MAX_BYTES} bytes")
        plain.flush()
        yield Path(plain.name)


@contextlib.contextmanager
def extracted(path: Path, member: Member | None) -> Iterator[Path]:
    """The file, or a temporary one with a member of a tar."""
    if member is None:
        yield path
        return
    with temporary(path) as plain:
        with member.tar.open("rb") as tar:
            tar.seek(member.offset)
            for left in range(member.st_size, 0, -BLOCK):
                plain.write(tar.read(min(left, BLOCK)))
        plain.flush()
        yield Path(plain.name)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file whose name becomes that of the user's file in errors."""
    with tempfile.NamedTemporaryFile() as file:
        try:
            yield file
        except InputError as error:
            raise type(error)(str(error).replace(file.name, str(path))) from None
