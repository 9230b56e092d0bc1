"""Errors of the processes that a run depends on become one sentence with the cause."""

import pytest

from diffcast.processes import reporting_lost_processes
from utils.errors import InputError

PASSED_ON = (
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File ...\n"
)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RuntimeError(PASSED_ON + "RuntimeError: No space left on device (28)"),
            "(RuntimeError: No space left on device",
        ),
        (
            OSError(PASSED_ON.replace("Runtime", "OS") + "OSError: [Errno 24] Too many open files"),
            "Too many open files",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "(DataLoader worker (pid 7) is killed",
        ),
        (ConnectionResetError(), "(it ended while it handed over a batch)"),
    ],
)
def test_the_loss_of_a_process_that_loads_data_names_the_cause(error, cause):
    with (
        pytest.raises(InputError, match="a process that loads data was lost") as told,
        reporting_lost_processes("repeat it"),
    ):
        raise error
    assert cause in str(told.value)
    assert "Caught" not in str(told.value)
    assert "\n" not in str(told.value)


def test_other_errors_are_not_taken_for_a_loss():
    with pytest.raises(OSError, match="No space left"), reporting_lost_processes("repeat it"):
        raise OSError(28, "No space left on device")
