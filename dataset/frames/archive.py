"""Where the frames that `frames.yaml` describes come from."""

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from dataset.frames.config import FramesConfig
from dataset.frames.files import read_frame
from dataset.frames.names import seconds
from dataset.frames.tars import Member, is_tar, members_of
from dataset.frames.values import StoredFrame
from utils.errors import InputError

FOUND = np.dtype([(field, "<i8") for field in ("time", "mark", "size", "mtime")])
INSIDE = np.dtype([(field, "<i8") for field in ("time", "offset", "size", "mtime")])  # of a tar


class Files:
    """Frames in files below a folder, found by the time in their names.

    A tar file counts as a folder. Its members are listed once, and again when it has changed.
    """

    def __init__(self, config: FramesConfig):
        self.config = config
        self._tars: dict[str, tuple[tuple[int, int], np.ndarray]] = {}  # by name: version and frames

    def find(self) -> np.ndarray:
        """Find `time`, nominal time `mark`, `size` and `mtime` of every frame.

        Times are seconds since 1970 (UTC) and rise, sizes are bytes, and times of modification ns. All are int64.
        Raises `InputError` if the folder cannot be read or holds no frame.
        """
        stats = ((time, entry.stat()) for time, entry in self._walk())
        return np.array(self._some((time, time, stat.st_size, stat.st_mtime_ns) for time, stat in stats), FOUND)

    def times(self) -> np.ndarray:
        """Find the rising times of all frames, as `find` does, but without their sizes."""
        return np.array(self._some(time for time, _ in self._walk()), np.int64)

    def name_of(self, time: datetime) -> Path:
        """Path of the frame at a time, which may lead into a tar file."""
        return self.config.folder / self.config.pattern.name_of(time)

    def read(self, time: datetime) -> StoredFrame:
        """Read the frame at a time. Raises `InputError` as `read_frame` does."""
        path = self.name_of(time)
        return read_frame(path, self.config, self._member(path, time))

    def _some(self, found: Iterable) -> list:
        """Sort what is found, which must be something."""
        folder, pattern = self.config.folder, self.config.pattern
        try:
            rows = sorted(found)
        except OSError as error:
            raise InputError(f"cannot read {error.filename or folder}: {error.strerror}.") from None
        if not rows:
            raise InputError(f"{folder} holds no frame with a name like {pattern.text}; correct pattern or folder.")
        return rows

    def _walk(self, above: str = "", depth: int = 0) -> Iterator[tuple[int, os.DirEntry | Member]]:
        """Times and places of all frames below a part of the folder, in no order."""
        pattern = self.config.pattern
        with os.scandir(self.config.folder / above) as entries:
            for entry in entries:
                name = above + entry.name
                if depth == pattern.depth:
                    time = pattern.time_of(name)
                    if time is not None and entry.is_file():
                        yield seconds(time), entry
                elif pattern.leads_to(name, depth):
                    if entry.is_dir():
                        yield from self._walk(f"{name}/", depth + 1)
                    elif entry.is_file():
                        frames = self._frames_of(name)
                        yield from ((row[0], Member(Path(entry), *row[1:])) for row in frames.tolist())

    def _frames_of(self, name: str) -> np.ndarray:
        """Frames inside a file in order of time, none if it is not a tar."""
        path = self.config.folder / name
        stat = path.stat()
        version = stat.st_size, stat.st_mtime_ns
        if self._tars.get(name, (None,))[0] != version:
            members = members_of(path) if is_tar(path) else ()
            dated = {self.config.pattern.time_of(f"{name}/{inside}"): member for inside, member in members}
            rows = sorted((seconds(time), *member[1:]) for time, member in dated.items() if time is not None)
            self._tars[name] = version, np.array(rows, INSIDE)
        return self._tars[name][1]

    def _member(self, path: Path, time: datetime) -> Member | None:
        """The member of a tar that a path leads to, None if it does not lead into a tar."""
        if path.parent.is_dir():
            return None
        names = self.config.pattern.name_of(time).split("/")
        for depth in range(1, len(names)):
            name = "/".join(names[:depth])
            tar = self.config.folder / name
            if tar.is_file():
                frames = self._frames_of(name)
                return next((Member(tar, *row[1:]) for row in frames[frames["time"] == seconds(time)].tolist()), None)
        return None


@lru_cache
def archive_of(config: FramesConfig) -> Files:
    """The archive that `frames.yaml` describes."""
    return Files(config)
