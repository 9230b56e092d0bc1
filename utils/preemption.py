"""Signals that ask a run to stop, from a cluster or a user."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PREEMPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h; the same run may go on later
MARKER = "PREEMPTED"  # a file that a training leaves when it ends with that status, and removes when it goes on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN = 2.0  # seconds after which a `Stopped` that was lost is raised again
ECHO = 1.0  # seconds in which a signal may arrive twice, from the terminal and from a launcher


class Stopped(BaseException):
    """A signal, named by the message, has asked a run to stop that may be repeated."""


class Preemption:
    """A context in which the first of `SIGNALS` is only noted.

    Another signal, later than the echo of the first, ends the process at once. Outside the main thread, where Python
    allows no handlers, nothing is noted. A forked process, such as a data loader's worker, also outlives the first
    signal, because its run still needs it.
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
        """React to the first signal, which has been noted."""


class Stopping(Preemption):
    """A context in which the first of `SIGNALS` raises `Stopped`.

    In a callback of compiled code, such as h5py's, the exception may be lost. It is raised again until the context
    ends.
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
    """Turn the first signal, or a `Stopped`, into a sentence and status `PREEMPTED`.

    The sentence contains the advice, and is also written to the `marker` file. The file serves scripts that start the
    run through a launcher, which has its own exit status.
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
    """Let a worker of a data loader outlive the first signal.

    This is a `worker_init_fn` of a DataLoader. A cluster signals all processes, but a run needs its workers to finish
    the step. A second signal ends the process. It may come from the run, which ends its workers.
    """
    for number in SIGNALS:
        signal.signal(number, _become_mortal)


def _become_mortal(number: int, _) -> None:
    signal.signal(number, signal.SIG_DFL)
