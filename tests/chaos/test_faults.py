"""Faults of a cluster: each is told in one sentence by all processes, in bounded time, and loses nothing saved."""

import json
import os
import signal

import psutil
import pytest
import torch

from diffcast.loading import TrainingBatches
from tests.chaos.lives import Life, be_impatient, damage, fill_disk_at, spoil
from tests.tiny import InMemory, arguments, read_losses
from utils import checkpoint
from utils.pickles import load_pickle
from utils.preemption import PREEMPTED

pytestmark = pytest.mark.slow

RUN = "Singlesimvp_sevir"
ENDLESS = "--epochs 0 --training_steps 100000 --valid_every 1000 --valid_sequences 2 --batch_size 2 --max_bad_steps 5"


@pytest.fixture
def begin(storm_folder, tmp_path):
    """Begin an endless training."""

    def training(*words: str, **life) -> Life:
        argv = arguments(storm_folder, tmp_path, *ENDLESS.split(), *words)
        return Life(argv, tmp_path / "log", **life)

    return training


@pytest.fixture
def checkpoints(tmp_path):
    return tmp_path / RUN / "checkpoints"


@pytest.fixture
def is_training(tmp_path):
    return (tmp_path / RUN / "losses.csv").exists


def stops_with_one_sentence(life, *sentences):
    assert life.wait(60), life.told()
    assert set(life.statuses) <= {2, -signal.SIGKILL}, life.told()
    assert "Traceback" not in life.told()
    for sentence in sentences:
        assert sentence in life.told()


def test_processes_stop_at_the_same_step_when_one_is_asked(begin, is_training, checkpoints, tmp_path):
    with begin(processes=2) as life:
        life.wait_until(is_training)
        os.kill(life.processes[1].pid, signal.SIGUSR1)
        assert life.wait(60), life.told()
        assert life.statuses == [PREEMPTED, PREEMPTED], life.told()
    (saved,) = checkpoint.checkpoints(checkpoints)
    assert f"step {checkpoint.step_of(saved)}: stopping after a signal; --resume continues from here" in life.told()
    assert read_losses(tmp_path / RUN)[-1]["step"] == checkpoint.step_of(saved)


def test_loss_of_a_process_ends_the_others(begin, is_training):
    with begin(processes=2) as life:
        life.wait_until(is_training)
        os.kill(life.processes[1].pid, signal.SIGKILL)
        stops_with_one_sentence(life, "another process of this run was lost or stopped answering")
        assert life.statuses == [2, -signal.SIGKILL]


def test_a_process_that_hangs_ends_the_others_in_bounded_time(begin, is_training):
    with begin(processes=2, prepare=(be_impatient, 3)) as life:
        life.wait_until(is_training)
        os.kill(life.processes[1].pid, signal.SIGSTOP)
        assert life.wait(30, until=any), "waits for a process that hangs"
        assert life.statuses == [2, None]
        assert "another process of this run was lost or stopped answering" in life.told()


def test_loss_of_a_process_that_loads_data_is_told(begin, is_training):
    with begin("--num_workers", "1") as life:
        life.wait_until(is_training)
        psutil.Process(life.processes[0].pid).children()[0].kill()
        stops_with_one_sentence(life, "a process that loads data was lost", "--num_workers")
        assert life.statuses == [2]


def test_processes_that_load_data_survive_what_asks_their_run_to_stop(begin, is_training, checkpoints):
    with begin("--num_workers", "1") as life:
        life.wait_until(is_training)
        os.killpg(life.processes[0].pid, signal.SIGTERM)
        assert life.wait(60), life.told()
        assert life.statuses == [PREEMPTED], life.told()
    assert checkpoint.newest_whole(checkpoints)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_ends_a_run_together_with_the_processes_that_load_its_data(begin, processes):
    with begin("--num_workers", "2", processes=processes, prepare=(damage,)) as life:
        stops_with_one_sentence(life, "error: Cannot read an event; download the file again.")
        assert life.statuses == [2] * processes


def test_a_full_disk_ends_all_processes_and_keeps_the_last_checkpoint(begin, checkpoints):
    with begin("--valid_every", "2", processes=2, prepare=(fill_disk_at, 3000)) as life:
        stops_with_one_sentence(
            life,
            f"error: cannot write checkpoint {checkpoints}/ckpt-4: No space left on device.",
            "error in process 1: the main process could not write the checkpoint",
        )
    assert [path.name for path in checkpoint.checkpoints(checkpoints)] == ["ckpt-2"]
    assert checkpoint.newest_whole(checkpoints)


def test_all_processes_skip_a_batch_that_one_cannot_use(begin, tmp_path, checkpoints):
    ((unusable, _),) = TrainingBatches(InMemory(torch.zeros(45)), 2, seed=0, start=3, stop=4, rank=1, processes=2)
    words = ["--training_steps", "12", "--valid_every", "12"]
    with begin(*words, processes=2, prepare=(spoil, unusable), on=1) as life:
        assert life.wait(60), life.told()
        assert life.statuses == [0, 0], life.told()
    rows = read_losses(tmp_path / RUN)
    bad = [int(row["step"]) for row in rows if not row["loss"] < 100]
    assert 4 in bad
    assert [line.split(":")[0] for line in life.told().splitlines() if ": skipped" in line] == [
        f"step {step}" for step in bad
    ]
    state = load_pickle(checkpoint.newest_whole(checkpoints) / checkpoint.TRAINING)
    assert state["skipped"] == len(bad)
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_diagnosis_repeats_what_ended_the_training(begin, tmp_path):
    with begin("--valid_every", "1", prepare=(spoil, *range(45))) as life:
        stops_with_one_sentence(life, "training stopped at step 5: the last 5 steps were skipped")
    diagnosis = tmp_path / RUN / "diagnosis"
    first = json.loads((diagnosis / "diagnosis.json").read_text())
    assert first["repeat_with"] == f"--resume {diagnosis / 'ckpt-0'}"
    assert [step["step"] for step in first["steps"]] == [1, 2, 3, 4, 5]
    assert len(first["steps"][0]["batches"][0]["sequences"]) == 2
    with begin(*first["repeat_with"].split(), prepare=(spoil, *range(45))) as life:
        stops_with_one_sentence(life, "training stopped at step 5: the last 5 steps were skipped")
    assert json.loads((diagnosis / "diagnosis.json").read_text()) == first
