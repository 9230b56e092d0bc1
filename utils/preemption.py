"""Signals with which a cluster, or a user, asks a run to make room."""

import os
import signal
import threading
import time

PREEMPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: nothing is wrong, the same run may go on later
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ECHO = 1.0  # seconds in which a signal may arrive twice: from the terminal, and passed on by a launcher


class Preemption:
    """While this context lasts, the first of `SIGNALS` is only noted; another one, later than its echo, ends at once.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self):
        self.received: str | None = None  # name of the signal
        self._owner = os.getpid()
        self._since = 0.0
        self._previous = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        if os.getpid() != self._owner:
            return
        if self.received is None:
            self.received, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > ECHO:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def shield_worker(_: int) -> None:
    """Let a process that loads data outlive the first signal, for its run needs it to finish the step.

    This is a `worker_init_fn` of a DataLoader. A cluster sends its signals to all processes; a second one, which may
    be the run's own that ends its workers, ends the process.
    """
    for number in SIGNALS:
        signal.signal(number, _become_mortal)


def _become_mortal(number: int, _) -> None:
    signal.signal(number, signal.SIG_DFL)
