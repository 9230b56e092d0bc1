"""A watch over a folder of radar frames, which forecasts whenever a new one arrives."""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime

from diffcast.forecasting.operational import Operation
from utils.errors import InputError

LOG = logging.getLogger(__name__)
FAILURES = (InputError, OSError, RuntimeError, MemoryError)  # after which another frame may find better luck


def watch(operation: Operation, poll: float, clock: Callable[[], datetime | None] = lambda: None) -> None:
    """Forecast whenever there is a new frame, until SIGTERM or Ctrl-C.

    The folder is read every `poll` seconds.

    What cannot be forecast, such as a frame that is only half written, is logged once and tried again.
    """
    LOG.info("watching %s every %g s", operation.config.folder, poll)
    complaint = None
    with ending_at_signals():
        while True:
            try:
                newest = operation.newest(clock())
                path = operation.path_of(newest)
                if not path.exists():
                    operation.forecast(newest, path)
                complaint = None
            except FAILURES as error:
                if str(error) != complaint:
                    LOG.warning("no forecast: %s", error)
                complaint = str(error)
            time.sleep(poll)


@contextlib.contextmanager
def ending_at_signals() -> Iterator[None]:
    """End the block, and nothing else, at SIGTERM or Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        LOG.info("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
