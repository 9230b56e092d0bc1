"""A signal to a launcher reaches the run, which leaves a checkpoint, a marker and no process."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.tiny import ROOT, arguments
from utils import checkpoint
from utils.preemption import MARKER

pytestmark = pytest.mark.slow

ENDLESS = "--epochs 0 --training_steps 100000 --valid_every 1000 --valid_sequences 2 --batch_size 2"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "receiver"),
    [
        (signal.SIGUSR1, "torchrun"),
        pytest.param(signal.SIGTERM, "accelerate", marks=pytest.mark.chaos),
        pytest.param(signal.SIGTERM, "everyone", marks=pytest.mark.chaos),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_to_a_launcher_loses_nothing(storm_folder, tmp_path, number, receiver):
    folder = tmp_path / "Singlesimvp_sevir"
    command = [*LAUNCH, str(ROOT / "run.py"), *arguments(storm_folder, tmp_path, *ENDLESS.split())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as accelerate,
    ):
        processes = []
        try:
            wait_for((folder / "losses.csv").exists)
            processes = psutil.Process(accelerate.pid).children(recursive=True)
            assert len(processes) == 3
            if receiver == "everyone":
                os.killpg(accelerate.pid, number)
            else:
                (processes[0] if receiver == "torchrun" else accelerate).send_signal(number)
            _, alive = psutil.wait_procs(processes, 30)
            assert not alive
        finally:
            for process in [*processes, psutil.Process(accelerate.pid)]:  # the last one is a zombie by now, or alive
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    assert accelerate.returncode != 0
    (saved,) = checkpoint.checkpoints(folder / "checkpoints")
    checkpoint.verify(saved)
    assert f"step {checkpoint.step_of(saved)}: stopping after" in (folder / "run.log").read_text()
    assert "the same command with --resume continues" in (folder / MARKER).read_text()
