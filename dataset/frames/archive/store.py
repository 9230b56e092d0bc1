"""Frames in a Zarr store, whose first axis is time.

A frame and its coordinates become a small NetCDF file in memory, so that one reader knows the CF conventions.
"""

import contextlib
import errno
import io
import itertools
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dataset.frames.archive.files import FAULTS, framed
from dataset.frames.archive.names import FOUND, seconds
from dataset.frames.archive.zarr_array import ZarrArray, attributes_of_group, open_array
from dataset.frames.config import FramesConfig
from dataset.frames.readers.limits import MAX_PIXELS
from dataset.frames.readers.netcdf import CREDITS, NEVER, decode_netcdf, seconds_of
from dataset.frames.values import Metadata, StoredFrame
from dataset.hdf5 import reason_of
from utils.errors import InputError

LOG = logging.getLogger(__name__)

FORMAT = "zarr"
MAX_TIMES, MAX_BLOCK, MAX_ARRAYS, MAX_TEXT = 2**22, 2**28, 1000, 10_000  # frames; bytes at once; names; characters
CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
ABOUT_FRAME = ("units", "standard_name", "long_name", "scale_factor", "add_offset", "_FillValue", "missing_value")
ABOUT_FRAME += ("valid_min", "valid_max", "valid_range", "_Unsigned", "grid_mapping", "coordinates")
ABOUT_AXIS = ("units", "standard_name", "axis")
SAFE_NAME = re.compile(r"\w[\w .+-]*")


class Coordinate(NamedTuple):
    """A coordinate of frames, or what says how they are projected."""

    name: str
    values: np.ndarray
    attributes: dict[str, Any]
    axis: int | None  # of a frame, if the coordinate is that of its rows or columns


class Contents(NamedTuple):
    """What is in a store."""

    frames: ZarrArray  # (time, y, x)
    coordinates: tuple[Coordinate, ...]
    credits: dict[str, Any]  # about the origin of the store
    times: np.ndarray  # seconds since 1970, rising
    rows: np.ndarray  # of these times in `frames`
    version: tuple  # that changes if the store grows


class Store:
    """Frames in a Zarr store, with the methods of `Files`."""

    def __init__(self, config: FramesConfig):
        self.config, self.path = config, config.folder / config.store
        self._group = (self.path / (config.variable or "frames")).parent
        self._known: Contents | None = None
        self._block: tuple[tuple, np.ndarray] | None = None  # a key, and the frames that were read last

    def find(self) -> np.ndarray:
        """Find `time`, nominal time `mark`, `size` and `mtime` of every frame, as `Files.find` does."""
        contents = self._contents()
        chunks = contents.rows // contents.frames.chunks[0]
        numbers, inverse = np.unique(chunks, return_inverse=True)
        stats = np.array([_stat(contents.frames, number) for number in numbers.tolist()], np.int64)
        found = np.zeros(len(contents.times), FOUND)
        found["time"] = found["mark"] = contents.times
        found["size"], found["mtime"] = stats[inverse].T
        return found

    def times(self, since: datetime | None = None) -> np.ndarray:
        """Find the rising times of all frames, whatever `since`."""
        return self._contents().times

    def name_of(self, time: datetime) -> Path:
        """Store and time of a frame, for messages."""
        return self.path / f"{time:%Y-%m-%dT%H:%M:%S}"

    def read(self, time: datetime) -> StoredFrame:
        """Read the frame at a time. Raises `InputError` as `read_frame` does."""
        return framed(self.name_of(time), self.config, lambda: self._read(time))

    def _read(self, time: datetime) -> tuple[np.ndarray, Metadata]:
        contents = self._known or self._contents()
        place = np.searchsorted(contents.times, seconds(time))
        if place == len(contents.times) or contents.times[place] != seconds(time):
            raise FileNotFoundError(errno.ENOENT, "no such frame")
        stored = self._frame(contents, int(contents.rows[place]))
        with h5py.File(io.BytesIO(), "w") as file:
            _write(file, contents, stored)
            values, metadata = decode_netcdf(self.path, file, contents.frames.path.name)
        return values, replace(metadata, format=FORMAT, time=time)

    def _frame(self, contents: Contents, row: int) -> np.ndarray:
        """Stored values `(H, W)`. Frames of the same chunk are read once."""
        frames, long = contents.frames, contents.frames.chunks[0]
        begin, end = row - row % long, min(row - row % long + long, frames.shape[0])
        if (end - begin) * frames.dtype.itemsize * math.prod(frames.shape[1:]) > MAX_BLOCK:
            begin, end = row, row + 1
        key = (contents.version, begin, _stat(frames, row // long))
        block = self._block
        if block is None or block[0] != key:
            block = self._block = key, frames.read(begin, end)
        return block[1][row - begin]

    def _contents(self) -> Contents:
        """What is in the store now."""
        try:
            name = self.config.variable
            frames = open_array(self.path / name) if name else self._only_frames()
            line = self._time_of(frames)
            version = (frames.path, frames.shape, line.shape, _stat(line, max(0, line.last[0])))
            if self._known is None or self._known.version != version:
                self._known = self._listed(frames, line, version)
        except InputError:
            raise
        except FAULTS as error:
            raise InputError(f"{self.path} cannot be used ({reason_of(error, self.path)}); see to the store.") from None
        return self._known

    def _listed(self, frames: ZarrArray, line: ZarrArray, version: tuple) -> Contents:
        calendar = str(line.attributes.get("calendar", CALENDARS[0]))
        if calendar not in CALENDARS:
            raise ValueError(f"its calendar is {calendar}")
        times = seconds_of(line.read(0, line.shape[0]), str(line.attributes.get("units")))[: frames.shape[0]]
        before = np.maximum.accumulate(np.append(NEVER, times[:-1]))
        rows = np.flatnonzero(times > before)  # what an unfinished append has not written yet does not rise
        if not len(rows):
            raise InputError(f"{self.path} holds no time.")
        if len(rows) < len(times):
            LOG.warning("%d frames in %s are left out: their times do not rise", len(times) - len(rows), self.path)
        about = attributes_of_group(self.path)
        credits = {key: about[key] for key in CREDITS if key in about}
        return Contents(frames, tuple(self._coordinates(frames)), credits, times[rows], rows, version)

    def _coordinates(self, frames: ZarrArray) -> Iterator[Coordinate]:
        """Coordinates of rows and columns, those of curved grids, and the grid mapping."""
        shape = frames.shape[1:]
        for axis, name in enumerate(frames.dimensions[1:]):
            if self._holds(name) and (line := self._array(name)).shape == shape[axis : axis + 1]:
                yield Coordinate(name, line.read(0, shape[axis]), _chosen(line, ABOUT_AXIS), axis)
        for name in str(frames.attributes.get("coordinates", "")).split():
            if self._holds(name) and (plane := self._array(name)).shape == shape:
                yield Coordinate(name, plane.read(0, shape[0]), _chosen(plane, ABOUT_AXIS), None)
        name = str(frames.attributes.get("grid_mapping", ""))
        if self._holds(name):
            yield Coordinate(name, np.int32(0), self._array(name).attributes, None)

    def _time_of(self, frames: ZarrArray) -> ZarrArray:
        """The array of times of frames."""
        if len(frames.shape) != 3 or math.prod(frames.shape[1:]) > MAX_PIXELS or not self._holds(frames.dimensions[0]):
            raise ValueError(f"its {frames.path.name} is not of the axes time, y and x, or has too many pixels")
        line = self._array(frames.dimensions[0])
        if len(line.shape) != 1 or not 0 < line.shape[0] <= MAX_TIMES:
            raise ValueError(f"its {line.path.name} is not an axis of times")
        return line

    def _only_frames(self) -> ZarrArray:
        """The only array of three axes."""
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not the folder of a Zarr store; correct store or folder.")
        names = sorted(path.name for path in itertools.islice(self.path.iterdir(), MAX_ARRAYS))
        arrays = [array for name in names if self._holds(name) and len((array := self._array(name)).shape) == 3]
        if len(arrays) != 1:
            found = ", ".join(array.path.name for array in arrays[:5]) or "none"
            raise InputError(f"{self.path}: {found} of its arrays can be the frames; give the key variable.")
        return arrays[0]

    def _holds(self, name: str) -> bool:
        path = self._group / name
        return bool(SAFE_NAME.fullmatch(name)) and any((path / file).is_file() for file in (".zarray", "zarr.json"))

    def _array(self, name: str) -> ZarrArray:
        return open_array(self._group / name)


def _stat(array: ZarrArray, number: int) -> tuple[int, int]:
    """Bytes of the first and last chunk that begin at a number of the first axis, and when they changed."""
    places = {(number, *(0 for _ in array.last[1:])), (number, *array.last[1:])}
    stats = []
    for place in places:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            stats.append(array.file_of(place).stat())
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def _chosen(array: ZarrArray, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: array.attributes[key] for key in keys if key in array.attributes}


def _write(file: h5py.File, contents: Contents, stored: np.ndarray) -> None:
    """Write a frame, its coordinates and its grid mapping as NetCDF does."""
    _annotate(file, contents.credits)
    data = file.create_dataset(contents.frames.path.name, data=stored)
    # without a fill value NetCDF has default ones, and Zarr has not
    _annotate(data, {"_FillValue": np.nan} | _chosen(contents.frames, ABOUT_FRAME))
    for name, values, attributes, axis in contents.coordinates:
        coordinate = file.create_dataset(name, data=values)
        _annotate(coordinate, attributes)
        if axis is not None:
            coordinate.make_scale(name)
            data.dims[axis].attach_scale(coordinate)


def _annotate(data: h5py.HLObject, attributes: dict[str, Any]) -> None:
    """Write texts and numbers of JSON as attributes."""
    for key, value in attributes.items():
        if isinstance(value, str):
            data.attrs[key] = value[:MAX_TEXT]
        elif np.size(value) and np.asarray(value).dtype.kind in "iuf":
            data.attrs[key] = value
