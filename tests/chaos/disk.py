"""Doing something at the n-th call that changes files: writing to one, flushing, renaming, making a folder."""

import errno
import io
import os
import signal
from collections.abc import Callable

import pytest

NAMING = ("fsync", "replace", "mkdir")


class File:
    """A file that calls `act` before each write, of which half has then already happened if it raises."""

    def __init__(self, file, act: Callable[[], None]):
        self.file, self.act = file, act

    def write(self, data):
        try:
            self.act()
        except OSError:
            self.file.write(data[: len(data) // 2])
            raise
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def at_call(patch: pytest.MonkeyPatch, number: int, action: Callable[[], None], writing: bool = True) -> None:
    """Do `action` at the given call and at all later ones; calls that write to a file count only if `writing`."""
    calls = 0

    def act() -> None:
        nonlocal calls
        calls += 1
        if calls >= number:
            action()

    def acting(function):
        def call(*args, **kwargs):
            act()
            return function(*args, **kwargs)

        return call

    def opening(path, mode="r", *args, **kwargs):
        file = original(path, mode, *args, **kwargs)
        return File(file, act) if writing and set(mode) & set("wax+") else file

    original = io.open
    patch.setattr(io, "open", opening)
    for name in NAMING:
        patch.setattr(os, name, acting(getattr(os, name)))


def full() -> None:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die() -> None:
    """End this process as the out-of-memory killer or a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)
