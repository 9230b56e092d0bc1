"""Where the frames that `frames.yaml` describes come from."""

import logging
import os
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np

from dataset.frames.archive.files import read_frame
from dataset.frames.archive.names import FOUND, local_of, seconds, utc_of
from dataset.frames.archive.store import Store
from dataset.frames.archive.tars import Member, is_tar, members_of
from dataset.frames.config import FramesConfig
from dataset.frames.values import StoredFrame
from utils.errors import InputError

LOG = logging.getLogger(__name__)

UNCLEAR = -(2**63)  # time of a name that clocks show twice or never
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
        rows = self._sorted((time, time, stat.st_size, stat.st_mtime_ns) for time, stat in stats)
        unclear = next(n for n, row in enumerate([*rows, (0,)]) if row[0] != UNCLEAR)
        if unclear:
            LOG.warning(
                "%d names in %s are left out: clocks in %s show their times twice or never",
                *(unclear, self.config.folder, self.config.timezone),
            )
        return np.array(self._some(rows[unclear:]), FOUND)

    def times(self, since: datetime | None = None) -> np.ndarray:
        """Find the rising times of all frames, as `find` does, but without their sizes.

        Folders that end a day before `since` are left out.
        """
        times = self._sorted(time for time, _ in self._walk(since=since and since - timedelta(days=1)))
        times = [time for time in times if time != UNCLEAR]
        return np.array(times if since else self._some(times), np.int64)

    def name_of(self, time: datetime) -> Path:
        """Path of the frame at a time, which may lead into a tar file."""
        return self.config.folder / self._name(time)

    def read(self, time: datetime) -> StoredFrame:
        """Read the frame at a time.

        Raises `InputError` as `read_frame` does, and if the file says that it is of another time. It may be off by an
        interval, because a sum has a beginning and an end.
        """
        path = self.name_of(time)
        frame = read_frame(path, self.config, self._member(path, time))
        own = frame.metadata.time or time
        if abs((own - time).total_seconds()) > 60 * self.config.interval + self.config.tolerance:
            raise InputError(
                f"{path} is of {own:%Y-%m-%d %H:%M} UTC by its content but of {time:%Y-%m-%d %H:%M} UTC by its name; "
                "correct pattern or timezone, or remove the file."
            )
        return frame

    def _name(self, time: datetime) -> str:
        return self.config.pattern.name_of(local_of(time, self.config.timezone))

    def _time(self, name: str) -> int | None:
        """Time of a name in seconds, `UNCLEAR` if clocks show it twice or never; None for other names."""
        local = self.config.pattern.time_of(name)
        if local is None:
            return None
        time = utc_of(local, self.config.timezone)
        return UNCLEAR if time is None else seconds(time)

    def _sorted(self, found: Iterable) -> list:
        try:
            return sorted(found)
        except OSError as error:
            raise InputError(f"cannot read {error.filename or self.config.folder}: {error.strerror}.") from None

    def _some(self, found: list) -> list:
        """The list itself; raises `InputError` if it is empty."""
        if not found:
            folder, pattern = self.config.folder, self.config.pattern.text
            raise InputError(f"{folder} holds no frame with a name like {pattern}; correct pattern or folder.")
        return found

    def _walk(
        self, above: str = "", depth: int = 0, since: datetime | None = None
    ) -> Iterator[tuple[int, os.DirEntry | Member]]:
        """Times and places of all frames below a part of the folder, in no order."""
        pattern = self.config.pattern
        with os.scandir(self.config.folder / above) as entries:
            for entry in entries:
                name = above + entry.name
                if depth == pattern.depth:
                    time = self._time(name)
                    if time is not None and entry.is_file():
                        yield time, entry
                elif pattern.leads_to(name, depth) and not (since and pattern.ends_before(name, depth, since)):
                    if entry.is_dir():
                        yield from self._walk(f"{name}/", depth + 1, since)
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
            dated = {inside: (self._time(f"{name}/{inside}"), *member[1:]) for inside, member in members}
            rows = sorted(row for row in dated.values() if row[0] is not None)
            self._tars[name] = version, np.array(rows, INSIDE)
        return self._tars[name][1]

    def _member(self, path: Path, time: datetime) -> Member | None:
        """The member of a tar that a path leads to, None if it does not lead into a tar."""
        if path.parent.is_dir():
            return None
        names = self._name(time).split("/")
        for depth in range(1, len(names)):
            name = "/".join(names[:depth])
            tar = self.config.folder / name
            if tar.is_file():
                frames = self._frames_of(name)
                return next((Member(tar, *row[1:]) for row in frames[frames["time"] == seconds(time)].tolist()), None)
        return None


@lru_cache
def archive_of(config: FramesConfig) -> Files | Store:
    """The archive that `frames.yaml` describes."""
    return Store(config) if config.store else Files(config)
