"""What every backbone must do, alone and in DiffCast: train, be saved and loaded, be evaluated, run on processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import run
from diffcast.forecaster import load_forecaster, place
from tests.diffcast.first_steps import first_steps
from tests.tiny import BACKBONES, ROOT, arguments, read_losses, tiny_architecture
from utils.pickles import load_pickle

FORECASTERS = {
    f"{kind} {name}": (name, use_diff)
    for name in BACKBONES
    for kind, use_diff in (("single", False), ("diffcast", True))
}


def forecasters(*fast: str) -> pytest.MarkDecorator:
    """Run a test with each forecaster; those that are not named are slow."""
    cases = [
        pytest.param(*case, id=name, marks=() if name in fast else pytest.mark.slow)
        for name, case in FORECASTERS.items()
    ]
    return pytest.mark.parametrize(("backbone", "use_diff"), cases)


@forecasters("single convgru")
def test_trains_saves_loads_and_evaluates(backbone, use_diff, storm_folder, tmp_path):
    options = [f"{name}={json.dumps(value)}" for name, value in BACKBONES[backbone].items()]
    words = ["--backbone", backbone, "--backbone_options", *options, *(["--use_diff"] if use_diff else [])]
    words += ["--training_steps", "22", "--lr", "3e-3", "--valid_every", "22"]
    run.main(arguments(storm_folder, tmp_path, *words))
    folder = tmp_path / f"{'Diff' if use_diff else 'Single'}{backbone}_sevir"
    losses = [row["loss"] for row in read_losses(folder)]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    weights = folder / "checkpoints" / "best.safetensors"
    report = json.loads((folder / "evaluation_best" / "metrics.json").read_text())
    assert report["scores"][("diffcast_" if use_diff else "") + backbone]["crps"] > 0

    raw = load_pickle(folder / "checkpoints" / "ckpt-22" / "training.pt")["model"]
    stored = load_file(weights)
    assert all(torch.equal(value, raw[name]) for name, value in stored.items())  # so early the average is a copy
    model, architecture = load_forecaster(weights)
    assert architecture == tiny_architecture(backbone, use_diff)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    frames = torch.rand(2, 5, 1, 16, 16)
    draws = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    assert torch.isfinite(model.eval().forecast(frames, generator=draws)).all()


@forecasters(*FORECASTERS)
def test_half_precision_stays_finite(backbone, use_diff):
    torch.manual_seed(0)
    model = tiny_architecture(backbone, use_diff).build().to(memory_format=torch.channels_last)
    frames = torch.rand(2, 25, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*frames.tensor_split([5], dim=1), torch.Generator().manual_seed(0))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory):
    """What `first_steps` finds on two processes, for all forecasters."""
    out = tmp_path_factory.mktemp("steps") / "two.safetensors"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "True", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launch, str(ROOT / "tests/diffcast/first_steps.py"), str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


@forecasters()
def test_parts_of_a_batch_with_gaps_train_as_the_whole(backbone, use_diff, on_two_processes):
    whole, accumulated = (first_steps(backbone, use_diff, batches) for batches in (1, 2))
    spread = {name: on_two_processes[f"{backbone} {use_diff} {name}"] for name in whole}
    largest = max(float(value.abs().max()) for name, value in whole.items() if not name.startswith("loss"))
    assert len(whole) > 10
    for parts in (accumulated, spread):
        for name, value in whole.items():
            exactness = {"rtol": 1e-6, "atol": 0} if name.startswith("loss") else {"rtol": 0, "atol": 5e-6 * largest}
            torch.testing.assert_close(parts[name], value, **exactness)


def test_any_kind_of_layer_can_be_placed():
    model = torch.nn.ModuleList([torch.nn.Conv2d(2, 3, 3), torch.nn.Conv3d(2, 3, 3), torch.nn.Linear(2, 3)])
    place(model, torch.device("cpu"))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    assert model[1].weight.is_contiguous()
