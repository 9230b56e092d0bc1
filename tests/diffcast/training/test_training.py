"""The training loop: equal over processes, batches and interruptions."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import run
from dataset import build_dataset
from diffcast.evaluation.loop import EvaluationSettings, evaluate
from diffcast.objectives import OBJECTIVES
from diffcast.training import loop as training
from diffcast.training.loop import Trainer, TrainingSettings, lr_factor
from tests.tiny import ROOT, InMemory, arguments, read_losses, run_py, tiny_architecture
from utils.preemption import PREEMPTED
from utils.weights import load_metadata

RUN = "Diffsimvp_sevir"
SHORT = ["--epochs", "0", "--training_steps", "3", "--no_eval"]


def losses(rows):
    return np.array([[row["loss"], row["deterministic"], row["diffusion"], row["gradient_norm"]] for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_with_half_the_batch_equal_one(storm_folder, tmp_path, objective):
    rows = {}
    for processes in (1, 2):
        words = ["--use_diff", "--augment", "--batch_size", str(4 // processes), "--training_steps", "3"]
        words += ["--lr", "1e-5", "--objective", objective, "--sampling_steps", "1"]
        done = run_py(*arguments(storm_folder, tmp_path / str(processes), *words), processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"{processes} process(es)" in done.stdout
        rows[processes] = losses(read_losses(tmp_path / str(processes) / RUN)[:3])
    np.testing.assert_allclose(rows[2], rows[1], rtol=1e-5)


@pytest.mark.slow
def test_accumulated_batches_equal_a_large_one(storm_folder, tmp_path):
    for name, words in {"large": "--batch_size 4", "small": "--batch_size 2 --grad_acc_step 2"}.items():
        words = ["--use_diff", "--lr", "1e-5", *SHORT, *words.split()]
        run.main(arguments(storm_folder, tmp_path / name, *words))
    large, small = (losses(read_losses(tmp_path / name / RUN)) for name in ("large", "small"))
    assert len(large) == len(small) == 3
    np.testing.assert_allclose(small, large, rtol=1e-5)


@pytest.mark.slow
def test_number_of_loading_processes_changes_nothing(storm_folder, tmp_path):
    for workers in "02":
        run.main(arguments(storm_folder, tmp_path / workers, "--use_diff", *SHORT, "--num_workers", workers))
    none, two = (read_losses(tmp_path / workers / RUN) for workers in "02")
    assert none == two


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["diffusion", "hybrid"])
def test_killed_training_resumes_to_the_bit(storm_folder, tmp_path, objective):
    words = ["--use_diff", "--objective", objective, "--training_steps", "36", "--valid_every", "12"]
    run.main(arguments(storm_folder, tmp_path / "whole", *words))
    folder = tmp_path / "killed" / RUN
    command = [sys.executable, str(ROOT / "run.py"), *arguments(storm_folder, tmp_path / "killed", *words, "--resume")]
    moments = [folder / "losses.csv", folder / "checkpoints" / "ckpt-12", folder / "checkpoints" / "ckpt-24"]
    for number, moment in enumerate(moments):  # the first is before there is any checkpoint
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not moment.exists() and process.poll() is None:
                time.sleep(0.02)
            time.sleep(random.Random(number).uniform(0, 0.3))
            assert process.poll() is None
            process.kill()
    run.main(arguments(storm_folder, tmp_path / "killed", *words, "--resume"))
    assert read_losses(folder) == read_losses(tmp_path / "whole" / RUN)
    finals = [
        load_file(run_folder / "checkpoints/ckpt-36/weights.safetensors")
        for run_folder in (tmp_path / "whole" / RUN, folder)
    ]
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


@pytest.mark.slow
def test_compiled_training_and_evaluation_give_the_same(storm_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = []
    for name, words in {"plain": [], "compiled": ["--compile"]}.items():
        run.main(arguments(storm_folder, tmp_path / name, "--use_diff", "--training_steps", "3", *words))
        folder = tmp_path / name / RUN
        scores = json.loads((folder / "evaluation_best/metrics.json").read_text())["scores"]
        found.append([row["loss"] for row in read_losses(folder)] + [scores["diffcast_simvp"]["crps"]])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
def test_interrupted_validation_is_made_up_for(storm_folder, tmp_path, monkeypatch):
    words = ["--training_steps", "12", "--epochs", "0", "--valid_every", "4", "--no_eval"]
    run.main(arguments(storm_folder, tmp_path / "whole", *words))
    with monkeypatch.context() as patch:
        interrupt_second_validation(patch)
        with pytest.raises(SystemExit) as stop:
            run.main(arguments(storm_folder, tmp_path / "cut", *words))
    assert stop.value.code == PREEMPTED
    folders = [tmp_path / name / "Singlesimvp_sevir" for name in ("whole", "cut")]
    assert sorted(path.name for path in (folders[1] / "checkpoints").glob("ckpt-*")) == ["ckpt-4", "ckpt-8"]
    assert load_metadata(folders[1] / "checkpoints" / "best.safetensors")["step"] == 4
    run.main(arguments(storm_folder, tmp_path / "cut", *words, "--resume"))
    whole, cut = ((folder / "checkpoints" / "best.safetensors").read_bytes() for folder in folders)
    assert whole == cut
    assert "step 8: validation loss" in (folders[1] / "run.log").read_text()
    assert read_losses(folders[0]) == read_losses(folders[1])


def interrupt_second_validation(patch):
    """Let SIGTERM arrive when it has begun."""
    original = training.validation_loss

    def interrupted(accelerator, model, *others):
        interrupted.calls += 1
        if interrupted.calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(accelerator, model, *others)

    interrupted.calls = 0
    patch.setattr(training, "validation_loss", interrupted)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "sampling_steps"), [("diffusion", 20), ("crps", None)])
def test_diffcast_overfits_two_sequences(storm_folder, tmp_path, objective, sampling_steps):
    torch.manual_seed(0)
    architecture = tiny_architecture("simvp", use_diff=True, objective=objective, residual_scale=0.22)
    architecture = replace(architecture, dim=16)
    model = architecture.build(loss_weight="uniform")
    whole = build_dataset("sevir", "train", storm_folder, 16)
    two = InMemory(torch.stack([whole[0], whole[20]]))
    two.source = whole.source
    steps = 300
    settings = TrainingSettings(
        batch_size=2,
        training_steps=steps,
        epochs=1,
        warmup_steps=10,
        lr=3e-3,
        valid_every=steps,
        num_workers=0,
        early_stop=0,
        ema_rate=0.0,
    )
    accelerator = Accelerator(cpu=True)
    (tmp_path / "checkpoints").mkdir()
    trainer = Trainer(accelerator, model, two, two, settings, tmp_path, {})
    trainer.run()
    scores = evaluate(
        accelerator,
        trainer.ema.module,
        two,
        EvaluationSettings(members=4, sampling_steps=sampling_steps, cases=0, num_workers=0),
        tmp_path / "evaluation",
        "diffcast",
        {},
    )
    crps = {name: values["crps"] for name, values in scores.items()}
    assert crps["diffcast"] < 0.3 * min(crps["trend"], crps["persistence"]), crps


def test_validation_repeats_itself(storm_folder, tmp_path):
    words = ["--use_diff", "--lr", "0", "--epochs", "0", "--training_steps", "6", "--no_eval"]
    run.main(arguments(storm_folder, tmp_path, *words))
    last = load_metadata(tmp_path / RUN / "checkpoints" / "ckpt-6" / "weights.safetensors")
    first = load_metadata(tmp_path / RUN / "checkpoints" / "best.safetensors")
    assert (first["step"], last["step"]) == (3, 6)
    assert last["valid_loss"] == first["valid_loss"]  # weights that do not move keep their validation loss


def test_training_stops_early(storm_folder, tmp_path):
    for resume in ([], ["--resume"]):
        run.main(arguments(storm_folder, tmp_path, "--lr", "0", "--early_stop", "2", "--no_eval", *resume))
        assert read_losses(tmp_path / "Singlesimvp_sevir")[-1]["step"] == 9


def test_averaged_weights_follow_slowly(storm_folder, tmp_path):
    torch.manual_seed(0)
    data = build_dataset("sevir", "train", storm_folder, 16)
    model = tiny_architecture("simvp", use_diff=False).build()
    trainer = Trainer(Accelerator(cpu=True), model, data, data, TrainingSettings(ema_rate=0.5), tmp_path, {})
    weight, averaged = model.readout.weight, trainer.ema.module.readout.weight

    def update_at(step, value):
        trainer.step = step
        with torch.no_grad():
            weight.fill_(value)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer._update()
        return averaged.mean().item()

    assert update_at(50, 1.0) == 1.0  # early on a copy
    assert update_at(101, 5.0) == 1.0  # between updates nothing happens
    for step in range(120, 1000, 20):
        update_at(step, 1.0)
    assert update_at(1000, 3.0) == pytest.approx(2.0)  # half old, half new


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [("cosine", [0, 0.5, 1, 0.5, 0]), ("linear", [0, 0.5, 1, 0.5, 0]), ("constant", [0, 0.5, 1, 1, 1])],
)
def test_learning_rate(scheduler, expected):
    factors = [lr_factor(step, scheduler, warmup=10, total=110) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(factors, expected, atol=1e-12)
