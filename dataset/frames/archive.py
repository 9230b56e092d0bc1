"""Where the frames that `frames.yaml` describes come from."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from dataset.frames.config import FramesConfig
from dataset.frames.files import read_frame
from dataset.frames.names import seconds
from dataset.frames.values import StoredFrame
from utils.errors import InputError

FOUND = np.dtype([(field, "<i8") for field in ("time", "mark", "size", "mtime")])


@dataclass(frozen=True)
class Files:
    """Frames in files below a folder, found by the time in their names."""

    config: FramesConfig

    def find(self) -> np.ndarray:
        """Find `time`, nominal time `mark`, `size` and `mtime` of every frame.

        Times are seconds since 1970 (UTC) and rise, sizes are bytes, and times of modification ns. All are int64.
        Raises `InputError` if the folder cannot be read or holds no frame.
        """
        stats = ((seconds(time), entry.stat()) for time, entry in self._walk())
        return np.array(self._some((time, time, stat.st_size, stat.st_mtime_ns) for time, stat in stats), FOUND)

    def times(self) -> np.ndarray:
        """Find the rising times of all frames, as `find` does, but without their sizes."""
        return np.array(self._some(seconds(time) for time, _ in self._walk()), np.int64)

    def name_of(self, time: datetime) -> Path:
        """Name of the frame at a time, for messages."""
        return self.config.folder / self.config.pattern.name_of(time)

    def read(self, time: datetime) -> StoredFrame:
        """Read the frame at a time. Raises `InputError` as `read_frame` does."""
        return read_frame(self.name_of(time), self.config)

    def _walk(self) -> Iterable:
        return self.config.pattern.walk(self.config.folder)

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


def archive_of(config: FramesConfig) -> Files:
    """The archive that `frames.yaml` describes."""
    return Files(config)
