"""A watch over a folder of radar frames, which forecasts whenever a new one arrives."""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime

from dataset.frames.latest import recent
from diffcast.forecasting.operational import Operation
from diffcast.forecasting.watchstate import WatchState
from utils.errors import InputError

LOG = logging.getLogger(__name__)
FAILURES = (InputError, OSError, RuntimeError, MemoryError)  # after which another frame may find better luck


def watch(operation: Operation, poll: float, clock: Callable[[], datetime | None] = lambda: None) -> None:
    """Forecast whenever there is a new frame, until SIGTERM or Ctrl-C.

    The folder is read every `poll` seconds. A forecast whose frames are late is made when the last of them arrives,
    if its time is at most `max_age` intervals ago and not before the watch first began. What cannot be forecast, such
    as a frame that is only half written, is logged once and tried again. A file in the folder of the forecasts holds
    what a restarted watch must know.
    """
    state = WatchState.read(operation.folder, operation.config.file)
    LOG.info("watching %s every %g s%s", operation.config.folder, poll, state.summary)
    with ending_at_signals():
        while True:
            try:
                complaint = forecast_next(operation, state, clock())
            except FAILURES as error:
                complaint = str(error)
            if complaint and complaint != state.complaint:
                LOG.warning("no forecast: %s", complaint)
            state.complain(complaint)
            time.sleep(poll)


def forecast_next(operation: Operation, state: WatchState, now: datetime | None) -> str | None:
    """Make the newest forecast that is due and whose frames are there.

    Returns what keeps the newest forecast from being made, if anything.
    """
    times, complaint = recent(operation.config, now, operation.max_age), None
    state.begin(times[-1])
    for time_due in reversed(times):
        path = operation.path_of(time_due)
        if not state.is_due(time_due) or path.exists():
            continue
        try:
            frames = operation.newest(now, time_due)
        except InputError as error:
            complaint = str(error) if time_due == times[-1] else complaint
            continue
        operation.forecast(frames, path)
        state.finish(time_due)
        break
    return complaint


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
