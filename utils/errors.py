"""How the command lines report a user's mistake, or wish to stop: one sentence, no traceback."""

import contextlib
import os
import sys


class InputError(ValueError):
    """The user's input is at fault; the message names the file, flag or value and says what to do."""


@contextlib.contextmanager
def exit_on_input_error():
    """Turn an `InputError` into one line on standard error and exit status 2, Ctrl-C into one and status 130.

    Every process prints its own, so that none is lost in a multi-process run. An error from a data loader's worker
    arrives with the worker's traceback before it, of which only the last line, the message, is shown.
    """
    try:
        yield
    except InputError as error:
        kind = type(error)
        message = str(error).splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(f"error: {message}\n" if rank == "0" else f"error in process {rank}: {message}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
