"""How the command lines report a user's mistake, or wish to stop: one sentence, no traceback."""

import contextlib
import os
import re
import sys

# What PyTorch says, on any device, when it cannot have the memory or not even count its bytes.
TOO_LARGE = re.compile(
    r".*(?:can't allocate memory|(?:out of|not enough) memory|(?:Storage size|Stride) calculation overflowed).*"
)


class InputError(ValueError):
    """The user's input is at fault; the message names the file, flag or value and says what to do."""


@contextlib.contextmanager
def exit_on_input_error():
    """Turn an `InputError`, or a lack of memory, into one line and exit status 2, Ctrl-C into one and status 130.

    Every process prints its own, so that none is lost in a multi-process run. An error from a data loader's worker
    arrives with the worker's traceback before it, of which only the last line, the message, is shown.
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
