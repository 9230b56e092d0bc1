"""Trainings that are meant to die: forked from a process that has everything imported, so that a life begins at once.

Each process of a training leads its own process group, and is killed with all that it has started.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

import run
from dataset.sequences import Sequences
from diffcast.commandline.settings import DataSettings
from tests.chaos import disk
from utils.errors import InputError

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.chaos.lives"])


class Life:
    """A training with one or several processes; leaving its context kills what is left of them."""

    def __init__(self, argv: list[str], log: Path, processes: int = 1, prepare: tuple = (), on: int = 0):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log = log
        self.born = log.stat().st_size if log.exists() else 0
        self.processes = [
            _context.Process(target=_live, args=(argv, log, rank, processes, port, prepare if rank == on else ()))
            for rank in range(processes)
        ]

    def __enter__(self) -> "Life":
        self.log.touch()
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()

    def signal(self, number: int) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def wait(self, seconds: float, until=all) -> bool:
        """Wait until all or any of the processes have ended; False if they have not in that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if until(process.exitcode is not None for process in self.processes):
                return True
            time.sleep(0.01)
        return False

    @property
    def statuses(self) -> list[int | None]:
        return [process.exitcode for process in self.processes]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until the condition holds or the training has ended."""
        end = time.monotonic() + seconds
        while not condition() and not self.wait(0.02, until=any):
            assert time.monotonic() < end, self.told()

    def told(self) -> str:
        """What the training has written to standard output and error, without its bars."""
        return re.sub(r"\r?training: [^\r\n]*?\]", "", self.log.read_bytes()[self.born :].decode(errors="replace"))


def _live(argv: list[str], log: Path, rank: int, processes: int, port: int, prepare: tuple) -> None:
    with contextlib.suppress(OSError):
        os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    if processes > 1:
        os.environ |= {
            "ACCELERATE_USE_CPU": "True",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
        }
    multiprocessing.set_start_method("fork", force=True)  # of the processes that load data, as usual
    if "--eval" not in argv:
        run.start_evaluation = lambda *_: None
    for function, *args in [prepare] if prepare else []:
        function(*args)
    run.main(argv)


def die_at(call: int, writing: bool) -> None:
    """Die at the given call that changes files, see `disk.at_call`."""
    disk.at_call(pytest.MonkeyPatch(), call, disk.die, writing)


def fill_disk_at(call: int) -> None:
    """Let the disk be full from the given call that changes files on."""
    disk.at_call(pytest.MonkeyPatch(), call, disk.full)


def be_impatient(seconds: float) -> None:
    """Wait for other processes only so long."""
    run.TRAINING_PATIENCE = timedelta(seconds=seconds)


def spoil(*indices: int) -> None:
    """Let training sequences be infinite."""
    _replace_training_set(lambda index, frames: frames.fill_(float("inf")) if index in indices else frames)


def damage() -> None:
    """Let no training sequence be readable."""

    def fail(*_):
        raise InputError("Cannot read an event; download the file again.")

    _replace_training_set(fail)


def _replace_training_set(change: Callable) -> None:
    opened = DataSettings.open

    def changed(settings, split):
        return Changed(opened(settings, split), change) if split == "train" else opened(settings, split)

    DataSettings.open = changed


class Changed(Sequences):
    """A data set whose items are changed by a function of index and frames."""

    def __init__(self, dataset: Sequences, change: Callable):
        self.dataset, self.change = dataset, change
        self.sequence_id, self.source = dataset.sequence_id, dataset.source

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        return self.change(index, self.dataset[index])
