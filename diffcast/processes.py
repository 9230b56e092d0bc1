"""Start, agreement and loss of the processes of one run."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
import torch.distributed
from accelerate import Accelerator
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import broadcast_object_list
from torch.distributed.launcher.api import LaunchConfig

from utils.errors import InputError
from utils.files import locked

PASSED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # PyTorch's launcher passes on only the first four by default
T = TypeVar("T")
_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of Linux's <sys/prctl.h>


def start_missing_processes() -> None:
    """Make `accelerate launch --cpu --num_processes N run.py ...` run N processes.

    Without MPI, Accelerate starts only one process in that case. This process has the address of a coordinator, which
    Accelerate sets only for several processes, but no rank. It then becomes PyTorch's launcher of the same command. The
    launcher passes on SIGUSR1, too, and stops if a signal ends Accelerate, which passes on no signal.
    """
    several_on_cpu = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
    ranked = any(
        name in os.environ for name in ("LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    )
    if not several_on_cpu or ranked:
        return
    command = psutil.Process().parent().cmdline()
    launch = next((i for i, word in enumerate(command) if word.endswith(("launch", "launch.py"))), None)
    if launch is None:
        return
    asked = launch_command_parser().parse_args(command[launch + 1 :])
    if asked.num_processes and asked.num_processes > 1 and asked.num_machines in (None, 1):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        if "signals_to_handle" in LaunchConfig.__dataclass_fields__:  # not in PyTorch before 2.10
            launcher.append(f"--signals-to-handle={PASSED_ON}")
        _end_with_parent()
        os.execv(sys.executable, [*launcher, f"--nproc_per_node={asked.num_processes}", *sys.argv])


def _end_with_parent() -> None:
    """Let this process receive SIGTERM when its parent has died.

    This holds after `exec`, too, and only on Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGTERM)


def sum_over_processes(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the processes, of any integer or floating type."""
    if accelerator.num_processes == 1:
        return tensor
    return accelerator.reduce(tensor.to(accelerator.device), "sum")


def agreed(accelerator: Accelerator, mine: bool) -> bool:
    """Whether `mine` is true on any process, for which all wait."""
    return bool(sum_over_processes(accelerator, torch.tensor(int(mine))))


def decided_by_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Call `decide` in the main process, and return its result in all.

    All processes wait for it. Its `InputError` is raised in all of them.
    """
    decision: list = [None, None]  # result and error
    if accelerator.is_main_process:
        try:
            decision[0] = decide()
        except InputError as error:
            decision[1] = str(error)
    found, error = broadcast_object_list(decision)
    if error is not None:
        raise InputError(error)
    return found


@contextlib.contextmanager
def alone_in(folder: Path, accelerator: Accelerator, advice: str) -> Iterator[None]:
    """Keep other runs out of a folder, by a lock.

    Raises `InputError`, which ends with the advice, if another run has it.
    """
    with contextlib.ExitStack() as stack:
        decided_by_main(accelerator, lambda: stack.enter_context(locked(folder, advice)))
        yield


@contextlib.contextmanager
def patience(during: timedelta, afterwards: timedelta) -> Iterator[None]:
    """Bound how long processes wait, in the context and after it."""
    _set_patience(during)
    try:
        yield
    finally:
        _set_patience(afterwards)


def _set_patience(timeout: timedelta) -> None:
    if torch.distributed.is_initialized():
        torch.distributed.distributed_c10d._set_pg_timeout(timeout)


@contextlib.contextmanager
def ending_loaders() -> Iterator[None]:
    """Kill the processes that load data when the context ends.

    They outlive one SIGTERM (see `shield_worker`), which is all that they get from multiprocessing before it waits for
    them at the interpreter's exit.
    """
    try:
        yield
    finally:
        if left := multiprocessing.active_children():
            before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would report their end as an error
            for process in left:
                process.kill()
            for process in left:
                process.join()
            signal.signal(signal.SIGCHLD, before)


@contextlib.contextmanager
def reporting_lost_processes(advice: str) -> Iterator[None]:
    """Raise `InputError` if another process of the run has been lost.

    It names the loss, and ends with the advice.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        text = str(error)
        handing_over = isinstance(error, ConnectionError | EOFError)  # a batch, when the loading process was lost
        if "DataLoader worker" in text or handing_over:
            raise _lost_loader(text or "it ended while it handed over a batch", advice) from error
        if isinstance(error, torch.distributed.DistError) or "gloo" in text.lower():
            raise InputError(
                "another process of this run was lost or stopped answering; find its own message; "
                f"{advice} ({text.splitlines()[0].rstrip('.')})."
            ) from error
        raise


def _lost_loader(text: str, advice: str) -> InputError:
    """Describe the cause by one line of the error.

    This is the first line, or the last one of an error that arrives with its traceback.
    """
    lines = text.splitlines()
    cause = lines[-1 if lines[0].startswith("Caught ") else 0].strip(" .")
    return InputError(
        f"a process that loads data was lost ({cause}); if memory or shared memory (/dev/shm) was short, provide more "
        f"or lower --num_workers; {advice}."
    )
