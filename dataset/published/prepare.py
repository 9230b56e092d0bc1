"""Convert raw archives of Shanghai, MeteoNet and CIKM to HDF5 files.

    python -m dataset prepare shanghai RAW OUT.h5    RAW: a folder of grey PNG frames per period
    python -m dataset prepare meteonet RAW OUT.h5    RAW: the .npz files of one region and one product
    python -m dataset prepare cikm RAW OUT.h5        RAW: train.txt and the test files

OUT appears when it is complete. Memory does not grow with the archive, because it is read piece by piece. Nothing in an
archive is ever executed.
"""

import argparse
import contextlib
import errno
import logging
import math
import os
import pickletools
import re
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

from dataset.hdf5 import reason_of
from dataset.png import read_png
from dataset.published.reader import LAYOUTS, MAX_SIDE
from dataset.source import METEONET
from utils.errors import InputError
from utils.files import replacing, writable_folder

LOG = logging.getLogger(__name__)

Windows = Iterator[tuple[str, np.ndarray]]  # split and frames, uint8 (T, H, W)

TRAIN_SHARE = 0.85  # of the folders or files, the first in order of time; the others are the test split
# The published windows: one is kept if its sixth frame is rainy; then the start moves on.
WINDOW, JUDGED = 25, 5  # frames; number of the frame that is looked at
ADVANCE_TRAIN, ADVANCE = 15, 5  # frames, after a kept window of the training split and after any other

SHANGHAI_RAIN = 3  # mean byte of a rainy frame
METEONET_RAIN = 1  # mean dBZ of a rainy frame's valid pixels: about as much
METEONET_MISSING, METEONET_MOST = LAYOUTS["meteo"].missing, LAYOUTS["meteo"].full
NO_DATA, NO_ECHO = -200, -100  # in MeteoNet's product in tenths of dBZ
NPZ_ERRORS = (OSError, KeyError, ValueError, EOFError, RuntimeError, struct.error, tokenize.TokenError, zlib.error)

CIKM_SHAPE = (15, 4, 101, 101)  # times, heights (0.5, 1.5, 2.5 and 3.5 km), pixels
CIKM_VALID = 5  # a fifth of the training lines, the last: the published 2,000 of 10,000
MAX_DATES, MAX_LINE = 2**24, 2**23  # bytes; a month's dates need a hundredth of it, a line of CIKM a quarter


def prepare(archive: str, raw: str | Path, out: str | Path, **options) -> Counter[str]:
    """Write the windows of a raw archive to an HDF5 file.

    Returns the number of windows in each split. Raises `InputError` if the file exists or cannot be written, if the
    archive is not as published, or if a split would be empty.
    """
    name, read = ARCHIVES[archive]
    layout, raw, out = LAYOUTS[name], Path(raw), Path(out)
    if out.exists():
        advice = f"name a file in it, as {out / name}.h5" if out.is_dir() else "delete it or choose another name"
        raise InputError(f"{out} exists already; {advice}.")
    if not raw.is_dir():
        raise InputError(f"{raw} is no folder; pass the one that holds the raw files.")
    writable_folder(out.parent, "the prepared file")
    counts = Counter({"train": 0, "test": 0} | ({"valid": 0} if layout.has_valid else {}))
    with replacing(out) as temporary, _failing_as_oserror(), h5py.File(temporary, "w", locking=False) as file:
        for split, window in read(raw, **options):
            _write_window(file, layout.window.format(split=split, number=layout.first + counts[split]), window)
            counts[split] += 1
        for split, count in counts.items():
            if count == 0:
                raise InputError(f"{raw} gives no window for the {split} split; add the other files of the archive.")
            file[layout.length.format(split=split)] = count
    return counts


@contextlib.contextmanager
def _failing_as_oserror() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # so h5py reports some failed writes
        raise OSError(str(error)) from error


def _write_window(file: h5py.File, name: str, window: np.ndarray) -> None:
    # HDF5 does not survive a full disk: it goes on as if nothing had happened and crashes in the end
    if shutil.disk_usage(Path(file.filename).parent).free < 2 * window.nbytes + 2**24:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.create_dataset(name, data=window, chunks=(1, *window.shape[1:]), compression="lzf")
    file.flush()


def rainy_windows(
    frames: Iterable[np.ndarray | None],  # uint8 (H, W), in order of time; None: a gap, which no window spans
    is_rainy: Callable[[np.ndarray], bool],
    split: str,
) -> Iterator[np.ndarray]:
    """Yield windows uint8 `(WINDOW, H, W)` whose sixth frame is rainy."""
    buffer, advance = [], ADVANCE_TRAIN if split == "train" else ADVANCE
    for frame in frames:
        if frame is None:
            buffer.clear()
            continue
        buffer.append(frame)
        if len(buffer) == WINDOW:
            kept = is_rainy(buffer[JUDGED])
            if kept:
                yield np.stack(buffer)
            del buffer[: advance if kept else ADVANCE]


def _by_split(items: list) -> dict[str, list]:
    """The first items for training, at least one for the test."""
    first_test = int(TRAIN_SHARE * len(items))
    return {"train": items[:first_test], "test": items[first_test:]}


def read_shanghai(raw: Path) -> Windows:
    """Windows of the Shanghai archive, a folder of PNG frames per period.

    Folders and frames are in the order of the numbers in their names.
    """
    folders = sorted({path.parent for path in raw.glob("*/*.png")}, key=_natural)
    if not folders:
        raise InputError(f"{raw} holds no folder of PNG frames; pass the folder that holds one per period.")
    shape = _read_bytes(next(folders[0].glob("*.png"))).shape
    with tqdm(total=len(folders), desc="folders", disable=None) as bar:
        for split, group in _by_split(folders).items():
            for folder in group:
                frames = (_read_bytes(path, shape) for path in sorted(folder.glob("*.png"), key=_natural))
                for window in rainy_windows(frames, lambda frame: frame.mean() > SHANGHAI_RAIN, split):
                    yield split, window
                bar.update()


def _natural(path: Path) -> list[str | int]:
    """Sorts 9 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def _read_bytes(path: Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read a grey picture, uint8 `(H, W)`, of a given `shape`."""
    frame = read_png(path)
    if frame.dtype != np.uint8 or frame.shape != (shape or frame.shape):
        found = f"{frame.shape[1]} by {frame.shape[0]} pixels of {frame.dtype}"
        raise InputError(f"{path} has {found}; pictures must be 8-bit grey and of one size.")
    return frame


class Archive(NamedTuple):
    """One of MeteoNet's files."""

    path: Path
    dates: list[datetime]  # of its frames
    missing: frozenset[datetime]
    shape: tuple[int, int]  # of a frame


def read_meteonet(raw: Path) -> Windows:
    """Windows of the MeteoNet archive, .npz files of one region.

    Values are integer dBZ, 255 where missing. No window spans a missing frame.
    """
    archives = sorted((_inspect(path) for path in raw.rglob("*.npz")), key=lambda archive: archive.dates[0])
    if not archives:
        raise InputError(f"{raw} holds no .npz file; unpack the archives there.")
    for one, other in pairwise(archives):
        if one.dates[-1] >= other.dates[0] or one.shape != other.shape:
            raise InputError(f"{one.path} and {other.path} do not go together; pass one region and one product.")
    with tqdm(total=sum(len(archive.dates) for archive in archives), desc="frames", disable=None) as bar:
        for split, group in _by_split(archives).items():
            for window in rainy_windows(_contiguous(group, bar), _is_rainy_in_dbz, split):
                yield split, window


def _contiguous(archives: list[Archive], bar: tqdm) -> Iterator[np.ndarray | None]:
    """Frames of all files in order, None wherever time jumps."""
    before, interval = None, timedelta(minutes=METEONET.interval)
    for archive in archives:
        for date, frame in zip(archive.dates, _read_frames(archive), strict=True):
            bar.update()
            if date in archive.missing:
                continue
            if before is not None and date - before != interval:
                yield None
            before = date
            yield frame


def _is_rainy_in_dbz(frame: np.ndarray) -> bool:
    valid = frame[frame != METEONET_MISSING]
    return valid.size > 0 and valid.mean() > METEONET_RAIN


def _inspect(path: Path) -> Archive:
    """Read all of a file but its frames."""
    with _opened(path) as file:
        dates, missing = (_read_datetimes(file, name) for name in ("dates", "miss_dates"))
        _, (count, *shape), _ = _open_array(file, "data")
    if not dates or any(later <= earlier for earlier, later in pairwise(dates)):
        raise InputError(f"The dates in {path} do not increase; get the file again.")
    if count != len(dates) or len(shape) != 2 or not all(0 < side <= MAX_SIDE for side in shape):
        raise InputError(f"{path} holds {[count, *shape]} values for {len(dates)} dates; get the file again.")
    return Archive(path, dates, frozenset(missing), tuple(shape))


def _read_frames(archive: Archive) -> Iterator[np.ndarray]:
    """Frames of a file, uint8 `(H, W)` in integer dBZ."""
    with _opened(archive.path) as file:
        stream, _, dtype = _open_array(file, "data")
        for _ in archive.dates:
            frame = stream.read(math.prod(archive.shape) * dtype.itemsize)
            yield to_dbz(np.frombuffer(frame, dtype).reshape(archive.shape))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as file:
            yield file
    except (zipfile.BadZipFile, *NPZ_ERRORS) as error:
        raise InputError(f"{path} is not as published ({reason_of(error, path)}); get it again.") from error


def to_dbz(frame: np.ndarray) -> np.ndarray:
    """Whole dBZ as bytes, 255 for missing, from either of MeteoNet's products.

    The old one has these values already, in bytes or wider numbers. The new one has tenths of dBZ, signed, and pixels
    out of the radars' reach, or without echo, in each frame. Frames of other values are refused: MeteoNet's rainfall
    has -1 where missing.
    """
    if frame.dtype == np.uint8:
        return frame
    integer = frame.dtype.kind in "iu" and frame.dtype.itemsize > 1
    if integer and (((frame >= 0) & (frame <= METEONET_MOST)) | (frame == METEONET_MISSING)).all():
        return frame.astype(np.uint8)
    if not integer or frame.min() not in (NO_DATA, NO_ECHO):
        raise ValueError(f"its {frame.dtype} from {frame.min()} to {frame.max()} are neither whole dBZ nor tenths")
    dbz = (frame / 10).round().clip(0, METEONET_MOST)
    return np.where(frame == NO_DATA, METEONET_MISSING, dbz).astype(np.uint8)


def _open_array(archive: zipfile.ZipFile, name: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype]:
    """Stream of an array's bytes, its shape and its type."""
    stream = archive.open(f"{name}.npy")
    np.lib.format.read_magic(stream)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order and len(shape) > 1:
        raise ValueError(f"{name} is in Fortran's order")
    return stream, shape, dtype


def _read_datetimes(archive: zipfile.ZipFile, name: str) -> list[datetime]:
    stream, shape, dtype = _open_array(archive, name)
    content = stream.read(MAX_DATES)
    if dtype.hasobject:
        dates = pickled_datetimes(content)
    elif dtype.kind == "M":
        dates = np.frombuffer(content, dtype).astype("datetime64[us]").tolist()
    else:
        dates = []
    if shape != (len(dates),):
        raise ValueError(f"{name} should be {shape} dates, {len(dates)} can be read")
    return dates


def pickled_datetimes(content: bytes) -> list[datetime]:
    """The datetimes in a pickled array of them, without unpickling it.

    The published files hold such arrays, and unpickling may run any program that a file brings along. So the opcodes
    are only listed. A datetime's argument has 10 bytes: year (2), month, day, hour, minute, second, microsecond (3);
    old pickles have it as text. An argument of that length that is no date is a `ValueError`.
    """
    values = (value for _, value, _ in pickletools.genops(content))
    states = (value.encode("latin-1", "replace") if isinstance(value, str) else value for value in values)
    states = (state for state in states if isinstance(state, bytes) and len(state) == 10)
    return [datetime(*struct.unpack(">H5B3x", state)) for state in states]


def read_cikm(raw: Path, level: int = 1) -> Windows:
    """Windows of the CIKM 2017 archive at one of four heights."""
    train, test = (sorted(raw.rglob(pattern)) for pattern in ("train*.txt", "test*.txt"))
    if not train or not test:
        raise InputError(f"{raw} lacks train.txt or the test files; unpack the archive there.")
    count = sum(1 for _ in _lines(train))
    first_valid = count - count // CIKM_VALID
    with tqdm(_lines(train + test), desc="samples", disable=None) as bar:
        for number, (where, line) in enumerate(bar):
            split = "test" if number >= count else "valid" if number >= first_valid else "train"
            yield split, _parse_line(where, line)[:, level - 1]


def _lines(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Name and content of non-blank lines, long ones in pieces."""
    for path in paths:
        try:
            with path.open("rb") as file:
                for number, line in enumerate(iter(partial(file.readline, MAX_LINE), b""), 1):
                    if not line.isspace():
                        yield f"Line {number} of {path}", line
        except OSError as error:
            raise InputError(f"Cannot read {path} ({reason_of(error, path)}); get it again.") from error


def _parse_line(where: str, line: bytes) -> np.ndarray:
    """Frames of a line (name, rainfall, values), uint8 of `CIKM_SHAPE`."""
    values = line.split(b",", 2)[-1].replace(b",", b" ")
    try:
        frames = np.fromstring(values, np.int64, sep=" ").reshape(CIKM_SHAPE)
    except ValueError as error:
        raise InputError(f"{where} is not {' x '.join(map(str, CIKM_SHAPE))} whole numbers; get it again.") from error
    if frames.min() < 0 or frames.max() > 255:
        raise InputError(f"{where} has values outside 0 to 255; get the file again.")
    return frames.astype(np.uint8)


ARCHIVES: dict[str, tuple[str, Callable[..., Windows]]] = {  # name of the layout, reader
    "shanghai": ("shanghai", read_shanghai),
    "meteonet": ("meteo", read_meteonet),
    "cikm": ("cikm", read_cikm),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    archives = parser.add_subparsers(dest="archive", required=True)
    for name, (_, read) in ARCHIVES.items():
        archive = archives.add_parser(name, help=read.__doc__.split("\n")[0], description=read.__doc__)
        archive.add_argument("raw", type=Path, help="folder with the raw files")
        archive.add_argument("out", type=Path, help="HDF5 file to write")
        if name == "cikm":
            archive.add_argument(
                "--level", type=int, choices=(1, 2, 3, 4), default=1, help="1 for 0.5 km to 4 for 3.5 km (default: 1)"
            )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Prepare one archive."""
    options = vars(build_parser().parse_args(arguments))
    counts = prepare(**options)
    LOG.info("%s is complete: %s", options["out"], ", ".join(f"{n} {split} windows" for split, n in counts.items()))
