"""Signals with which a cluster, or a user, asks a run to make room."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PREEMPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: nothing is wrong, the same run may go on later
MARKER = "PREEMPTED"  # a file that a training leaves when it ends with that status, and removes when it goes on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN = 2.0  # seconds after which a `Stopped` that was lost is raised again
ECHO = 1.0  # seconds in which a signal may arrive twice: from the terminal, and passed on by a launcher


class Stopped(BaseException):
    """A signal has asked the run to stop, and it may be repeated; the message names the signal."""


class Preemption:
    """While this context lasts, the first of `SIGNALS` is only noted; another one, later than its echo, ends at once.

    Outside the main thread, where Python allows no handlers, nothing is noted. A forked process, such as one that
    loads data, outlives the first signal too, for what it works for needs it.
    """

    def __init__(self):
        self.received: str | None = None  # name of the signal
        self._owner = os.getpid()
        self._since = 0.0
        self._previous = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self._owner:
            _become_mortal(number, frame)
        elif self.received is None:
            self.received, self._since = signal.Signals(number).name, time.monotonic()
            self._note()
        elif time.monotonic() - self._since > ECHO:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _note(self) -> None:
        """Do what the first signal asks for, besides being noted."""


class Stopping(Preemption):
    """While this context lasts, the first of `SIGNALS` raises `Stopped` where the process happens to be.

    Where that is a callback of compiled code, such as h5py's, the exception may be lost; it is raised again until the
    context ends.
    """

    def __exit__(self, *_) -> None:
        if self.received is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        super().__exit__()

    def _note(self) -> None:
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._raise)
        signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        self._raise()

    def _raise(self, *_) -> None:
        raise Stopped(self.received)


@contextlib.contextmanager
def exit_when_stopped(advice: str, marker: Path | None = None) -> Iterator[None]:
    """Turn the first signal, or a `Stopped`, into a sentence with the advice, a marker file, and status `PREEMPTED`.

    The file is for what started the run through a launcher, which has an exit status of its own.
    """
    try:
        with Stopping():
            yield
    except Stopped as stopped:
        sentence = f"stopped after {stopped}; {advice}\n"
        if marker is not None:
            with contextlib.suppress(OSError):
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.write_text(sentence)
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(sentence if rank == "0" else f"process {rank} {sentence}")
        sys.exit(PREEMPTED)


def shield_worker(_: int) -> None:
    """Let a process that loads data outlive the first signal, for its run needs it to finish the step.

    This is a `worker_init_fn` of a DataLoader. A cluster sends its signals to all processes; a second one, which may
    be the run's own that ends its workers, ends the process.
    """
    for number in SIGNALS:
        signal.signal(number, _become_mortal)


def _become_mortal(number: int, _) -> None:
    signal.signal(number, signal.SIG_DFL)
