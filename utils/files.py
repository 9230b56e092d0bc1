"""Files that are complete or absent, locks and folders."""

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError

LOG = logging.getLogger(__name__)
LOCK_PATIENCE = 10  # seconds; processes that load data hold their run's lock until they notice its death


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`.

    The temporary file or folder replaces `path` if the block succeeds, and is deleted otherwise. Raises `InputError` if
    it cannot be written.
    """
    path = Path(path)
    # several machines may write it, whose processes have the same numbers
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, advice: str) -> Iterator[None]:
    """Lock an existing folder against other runs.

    The lock ends with the context or the process. Raises `InputError`, with the advice, if another run holds it.
    """
    lock = FileLock(folder / ".lock", timeout=LOCK_PATIENCE)
    try:
        with held(lock, folder):
            yield
    except Timeout:
        raise InputError(f"another run is at work in {folder}; {advice}.") from None


@contextlib.contextmanager
def held(lock: FileLock, folder: Path) -> Iterator[None]:
    """Hold a lock on a folder. If the disk has no locks, a warning replaces it.

    Raises `Timeout` if the lock has a timeout and another run holds it until then.
    """
    try:
        lock.acquire()
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        LOG.warning("%s cannot be locked; see to it that no other run works there: %s", folder, error)
    try:
        yield
    finally:
        lock.release()


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def writable_folder(path: str | os.PathLike, purpose: str) -> Path:
    """Create a folder if needed; raises `InputError` if it is not writable."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {path} for {purpose}: {error.strerror}.") from None
    if not os.access(path, os.W_OK):
        raise InputError(f"cannot write to {path}, which is needed for {purpose}; check its permissions.")
    return path


class Dispensable:
    """A context for output that a run can do without.

    If the output cannot be written, a warning is logged once, and no error is raised.
    """

    def __init__(self, what: str):
        self.what = what  # begins the warning's sentence
        self.warned = False

    def __enter__(self) -> "Dispensable":
        return self

    def __exit__(self, _, error: BaseException | None, __) -> bool:
        failed = isinstance(error, OSError | InputError)
        if failed and not self.warned:
            LOG.warning("%s cannot be written and will be incomplete; the run continues: %s", self.what, error)
            self.warned = True
        return failed
