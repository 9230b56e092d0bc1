"""Frames inside tar files, which nobody vouches for.

Only headers are read here, and members are never extracted by their names.
"""

import io
import logging
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dataset.frames.readers.limits import MAX_BYTES
from dataset.hdf5 import reason_of
from utils.errors import InputError

LOG = logging.getLogger(__name__)

MAX_HEADER = 2**16  # bytes of a member's name and other descriptions
MAX_MEMBERS = 2**20  # of a file
MARK, PLACE = b"ustar", 257  # of a header
COMPRESSED = re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd")  # gzip, bzip2, xz and Zstandard
FAULTS = (tarfile.TarError, OSError, ValueError, RuntimeError, KeyError, TypeError, OverflowError)


class Member(NamedTuple):
    """A plain file inside a tar file."""

    tar: Path
    offset: int  # of its content
    st_size: int  # bytes, named as by `os.stat`
    st_mtime_ns: int

    def stat(self) -> "Member":
        """Size and time of modification, as those of an entry of a folder."""
        return self


class _Headers(io.FileIO):
    """A file that is read in pieces of bearable size."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar.

    Raises `InputError` for a compressed one.
    """
    with path.open("rb") as file:
        begin = file.read(PLACE + len(MARK))
    if re.search(r"\.(tar\.\w+|tgz|tbz2?|txz)$", path.name) and COMPRESSED.match(begin):
        raise InputError(
            f"{path} is compressed, so that its frames cannot be read one by one; decompress it, to a .tar."
        )
    return begin[PLACE:] == MARK


def members_of(path: Path) -> Iterator[tuple[str, Member]]:
    """Yield names and places of the plain files of a tar, up to where it is damaged."""
    try:
        yield from _members(path)
    except FAULTS as error:
        LOG.warning("%s is damaged (%s); frames behind the damage are missing", path, reason_of(error, path))


def _members(path: Path) -> Iterator[tuple[str, Member]]:
    with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        end, last = path.stat().st_size, -1
        for _ in range(MAX_MEMBERS):
            found = tar.next()
            if found is None:
                return
            tar.members.clear()  # which would grow with the file
            if not last < found.offset_data <= found.offset_data + found.size:
                raise ValueError("its members overlap")
            last = found.offset_data
            if found.isreg() and not found.issparse() and last + found.size <= end and found.size <= MAX_BYTES:
                yield found.name.removeprefix("./"), Member(path, last, found.size, _nanoseconds(found.mtime))
    raise ValueError(f"it has more than {MAX_MEMBERS} members")


def _nanoseconds(mtime: float) -> int:
    return int(1e9 * mtime) if 0 <= mtime < 2**33 else 0
