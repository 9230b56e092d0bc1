"""Errors of the user, reported in a sentence and without a traceback."""

import contextlib
import os
import re
import sys

# Messages of PyTorch, on any device, when it cannot allocate memory or the number of bytes overflows.
TOO_LARGE = re.compile(
    r".*(?:can't allocate memory|(?:out of|not enough) memory|(?:Storage size|Stride) calculation overflowed).*"
)


class InputError(ValueError):
    """An error in the user's input.

    The message names the file, flag or value and says what to do.
    """


@contextlib.contextmanager
def exit_on_input_error():
    """Turn errors into a line and an exit status.

    The status is 2 for an `InputError` or a lack of memory, and 130 for Ctrl-C. In a run of several processes, every
    process prints its own line. An error from a worker of a data loader contains the worker's traceback, of which only
    the last line, the message, is printed.
    """
    try:
        yield
    except InputError as error:
        kind = type(error)
        _exit(str(error).splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: "))
    except (MemoryError, RuntimeError) as error:
        found = TOO_LARGE.search(str(error))
        if not (found or isinstance(error, MemoryError)):
            raise
        reason = found[0].strip() if found else "out of memory"
        _exit(
            f"this needs more memory than there is; ask for smaller frames, networks, batches or ensembles ({reason})"
        )
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _exit(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    sys.stderr.write(f"error: {message}\n" if rank == "0" else f"error in process {rank}: {message}\n")
    sys.exit(2)
