"""Numbers of processors and of processes that load data."""

import os

from utils.errors import InputError


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_processes(wanted: int) -> int:
    """Limit the number of processes that load data to one per processor.

    More would wait for each other. Raises `InputError` for a negative number.
    """
    if wanted < 0:
        raise InputError(f"num_workers must be 0 or more, not {wanted}.")
    return min(wanted, processors())
