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
from tests.tiny import BACKBONES, ROOT, arguments, read_losses, tiny_architecture
from utils.checkpoint import load_pickle

each_forecaster = pytest.mark.parametrize(
    ("backbone", "use_diff"),
    [(name, use_diff) for name in BACKBONES for use_diff in (False, True)],
    ids=[f"{kind} {name}" for name in BACKBONES for kind in ("single", "diffcast")],
)


@each_forecaster
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


@each_forecaster
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
def first_steps(storm_folder, tmp_path_factory):
    """Losses and gradients of all forecasters by number of processes."""
    found = {}
    for processes in (1, 2):
        out = tmp_path_factory.mktemp("gradients") / f"{processes}.safetensors"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        script = [str(ROOT / "tests/diffcast/save_gradients.py"), str(storm_folder), str(4 // processes), str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "True", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *launch, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = load_file(out)
    return found


@each_forecaster
def test_two_processes_find_the_gradients_of_one(backbone, use_diff, first_steps):
    one, two = (
        {name: value for name, value in first_steps[processes].items() if name.startswith(f"{backbone} {use_diff} ")}
        for processes in (1, 2)
    )
    assert one.keys() == two.keys()
    assert len(one) > 10
    if backbone == "phydnet":
        # Half a batch rounds otherwise, and where it is dry its norms and its recurrence make 3 % of that, with direct
        # convolutions, too; a process left out would be more than half.
        difference, size = (
            sum(float(values(name).double().square().sum()) for name in one) ** 0.5
            for values in (lambda name: two[name] - one[name], one.get)
        )
        assert difference < 0.1 * size
        return
    largest = max(float(value.abs().max()) for value in one.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6 * largest)


def test_any_kind_of_layer_can_be_placed():
    model = torch.nn.ModuleList([torch.nn.Conv2d(2, 3, 3), torch.nn.Conv3d(2, 3, 3), torch.nn.Linear(2, 3)])
    place(model, torch.device("cpu"))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    assert model[1].weight.is_contiguous()
