"""HDF5 files that may be damaged, hostile or on a failing disk."""

import contextlib
import errno
import itertools
import logging
import math
import mmap
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import h5py

from utils.errors import InputError

LOG = logging.getLogger(__name__)

MAX_CHUNK, MAX_CHUNKS = 2**26, 2**12  # bytes of a chunk; chunks that one reading touches
MAX_INFLATED = 2**28  # bytes that HDF5 may make of one chunk
EXPANSION = {h5py.h5z.FILTER_DEFLATE: 1032, h5py.h5z.FILTER_LZF: 132}  # bytes that a stored one becomes, at most

# what h5py raises for files that are truncated, damaged or not what they were when checked
READ_ERRORS = (OSError, KeyError, IndexError, RuntimeError, TypeError, ValueError)
TRANSIENT = {errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET}
PAUSES = (0.1, 0.5, 2.0)  # seconds before another try
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what disks without locks answer
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
OF_CONTENT = {errno.EINVAL, errno.EOVERFLOW}  # what places outside a file, which damaged ones name, end in

T = TypeVar("T")


class LayoutError(ValueError):
    """An HDF5 file has another layout or is not safe to read."""


class AccessError(InputError):
    """A file cannot be read at present.

    Its content is not at fault, so it must not be excluded for good.
    """

    @classmethod
    def of(cls, path: Path, number: int) -> "AccessError":
        """The error with the operating system's number, of a file or folder."""
        return cls(
            f"cannot read {path}: {os.strerror(number)}; see to its permissions, its disk, and programs that write it, "
            "and start again."
        )


def file_size(path: Path) -> int | None:
    """Size of a file, None without a file; `AccessError` if unknown."""
    try:
        found = path.stat()
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise AccessError.of(path, error.errno) from error
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def open_hdf5(path: Path, arriving: bool = False) -> h5py.File:
    """Open a file for reading, without a lock.

    Where the disk has locks, a file that may be `arriving` just now is locked, which fails while another program
    writes it.
    """
    if arriving:
        try:
            return h5py.File(path, "r", locking=True)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
    return h5py.File(path, "r", locking=False)


def is_own(file: h5py.File, name: str) -> bool:
    """Whether a file has a dataset or group of this name that lies in the file itself."""
    steps = itertools.accumulate(name.split("/"), "{}/{}".format)
    return all(isinstance(file.get(step, getlink=True), h5py.HardLink) for step in steps)


def own_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Open a dataset that lies in the file itself.

    It may be compressed by gzip or LZF. Raises `LayoutError` for any other.
    """
    if not is_own(file, name) or not isinstance(file[name], h5py.Dataset):
        raise LayoutError(f"it has no dataset {name} of its own")
    filters = _filters(file[name])
    harmless = {*EXPANSION, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
    if not harmless.issuperset(filters) or len(EXPANSION.keys() & filters) > 1 or len(set(filters)) < len(filters):
        raise LayoutError(f"its {name} is compressed by more than gzip or LZF")
    if file[name].is_virtual or file[name].external:
        raise LayoutError(f"its {name} lies in other files")
    return file[name]


def refuse_bombs(data: h5py.Dataset, start: Sequence[int], stop: Sequence[int]) -> None:
    """Raise `LayoutError` if a chunk would inflate to over MAX_INFLATED bytes.

    HDF5 inflates all that is stored, whatever size of a chunk is declared.
    """
    if data.chunks is None:
        return
    declared = math.prod(data.chunks) * data.dtype.itemsize
    corners = [range(a - a % size, b, size) for a, b, size in zip(start, stop, data.chunks, strict=True)]
    if declared > MAX_CHUNK or math.prod(map(len, corners)) > MAX_CHUNKS:
        raise LayoutError(f"its chunks {data.chunks} are too large or too many")
    expansion = max(EXPANSION.get(code, 1) for code in (0, *_filters(data)))
    for corner in itertools.product(*corners):
        stored = data.id.get_chunk_info_by_coord(corner).size
        if stored > 2 * declared + 2**10:
            raise LayoutError(f"a chunk of {declared} bytes takes {stored}")
        if stored * expansion > MAX_INFLATED and not _inflates_to(data, corner, declared):
            raise LayoutError(f"a chunk of {declared} bytes inflates to more")


def _filters(data: h5py.Dataset) -> list[int]:
    plan = data.id.get_create_plist()
    return [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]


def _inflates_to(data: h5py.Dataset, corner: tuple[int, ...], size: int) -> bool:
    """Whether a gzip chunk inflates to about `size` bytes."""
    try:
        return len(zlib.decompressobj().decompress(data.id.read_direct_chunk(corner)[1], size + 65)) <= size + 64
    except zlib.error:
        return False


def patiently(read: Callable[[], T]) -> T:
    """Call `read`, and repeat it after transient I/O errors."""
    for pause in PAUSES:
        try:
            return read()
        except READ_ERRORS as error:
            if _number_of(error) not in TRANSIENT:
                raise
            LOG.warning("%s; trying again in %g s", error, pause)
            time.sleep(pause)
    return read()


class OpenFiles:
    """HDF5 files that stay open for reading.

    Each process opens its own. Pickling leaves them behind.
    """

    def __init__(self, open_file: Callable[[Path], h5py.HLObject]):
        self._open_file = open_file
        self._opened: dict[Path, h5py.HLObject] = {}
        self._pid = os.getpid()

    def read(self, path: Path, read: Callable[[h5py.HLObject], T]) -> T:
        """Call `read` on an open file, and reopen it after errors."""
        return patiently(lambda: self._attempt(path, read))

    def _attempt(self, path: Path, read: Callable[[h5py.HLObject], T]) -> T:
        if self._pid != os.getpid():
            # after a fork the parent's handles share its file positions: close our copies before opening anew
            for inherited in list(self._opened):
                self._close(inherited)
            self._pid = os.getpid()
        try:
            if path not in self._opened:
                self._opened[path] = self._open_file(path)
            return read(self._opened[path])
        except READ_ERRORS:
            self._close(path)
            raise

    def _close(self, path: Path) -> None:
        opened = self._opened.pop(path, None)
        if opened is not None:
            with contextlib.suppress(*READ_ERRORS):  # what cannot be read may not close either
                opened.file.close()

    def __getstate__(self):
        return {**self.__dict__, "_opened": {}}


def reason_of(error: Exception, path: Path) -> str:
    """Describe in one line why the content cannot be read.

    Raises `AccessError` if nothing is: if the operating system refused to open or to read the file.
    """
    if isinstance(error, AccessError):
        raise error
    number = _number_of(error)
    if number and number not in OF_CONTENT:
        raise AccessError.of(path, number) from error
    return " ".join(str(error).split()) or type(error).__name__


def _number_of(error: Exception) -> int | None:
    """The operating system's number of an error, also from HDF5's text."""
    found = re.search(r"\berrno = (\d+)", str(error))
    return error.errno if isinstance(error, OSError) and error.errno else int(found[1]) if found else None


def refuse_endless_heaps(path: Path) -> None:
    """Raise `LayoutError` for texts that HDF5 2.0 would search for ever.

    https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html, "Global Heap".
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for heap in re.finditer(b"GCOL\1\0\0\0", content):
            place, size = heap.start() + 16, content[heap.end() : heap.end() + 8]
            end = heap.start() + int.from_bytes(size, "little")
            while place + 16 <= end:
                number, size = struct.unpack("<H6xQ", content[place : place + 16].ljust(16, b"\0"))
                if number == 0 and place + size != end:  # free space counts its own header and reaches to the end
                    raise LayoutError("its texts are damaged")
                place += size if number == 0 else 16 + -(-size // 8) * 8
