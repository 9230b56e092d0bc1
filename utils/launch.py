"""Several processes on processors alone."""

import os
import sys

import psutil
from accelerate.commands.launch import launch_command_parser


def start_missing_processes() -> None:
    """Make `accelerate launch --cpu --num_processes N run.py ...` run N processes.

    Without MPI, Accelerate starts a single one in that case, silently. It is recognised by the coordinator's address,
    which Accelerate sets only for several processes, and by the lack of a rank; it then becomes PyTorch's launcher of
    the same command. Everything else is left alone.
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
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        os.execv(sys.executable, [*launcher, str(asked.num_processes), *sys.argv])
