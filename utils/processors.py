"""How much work this machine can do at a time."""

import os

from utils.errors import InputError


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_processes(wanted: int) -> int:
    """As many processes that load data as wanted, at most one per processor: more would wait for each other.

    Raises `InputError` for a negative number.
    """
    if wanted < 0:
        raise InputError(f"--num_workers must be 0 or more, not {wanted}.")
    return min(wanted, processors())
