"""`import diffcast`: the functions for notebooks and programs."""

import os
import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure

import diffcast as dc
from tests.tiny import ROOT, tiny_architecture
from utils.errors import InputError
from utils.weights import save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a tiny DiffCast and of its backbone alone."""
    folder = tmp_path_factory.mktemp("weights")
    for use_diff in (True, False):
        architecture = tiny_architecture("convgru", use_diff)
        metadata = {"architecture": architecture.to_metadata()}
        torch.manual_seed(0)
        save_weights(folder / f"{use_diff}.safetensors", architecture.build().state_dict(), metadata)
    return folder


@pytest.fixture(scope="module")
def model(weights):
    return dc.load(str(weights / "True.safetensors"), device="cpu")


def test_load_forecast_score_and_draw(model, storm_folder, tmp_path):
    data = dc.dataset("sevir", "test", storm_folder, like=model)
    scores = dc.Scores.of(data.source, model.frames_out, members=2)
    for observed, future in dc.batches(data, 4):
        ensemble = dc.forecast(model, observed, members=2, seed=0, sampling_steps=1)
        scores.update(ensemble, future)
    assert ensemble.shape == (2, 2, 20, 1, 16, 16)
    assert 0 < scores.compute()["crps"] < 1
    for suffix, magic in {"gif": b"GIF89a", "png": b"\x89PNG", "pdf": b"%PDF"}.items():
        path = tmp_path / f"storm.{suffix}"
        assert isinstance(dc.draw(path, observed[0], future[0], ensemble[0], data.source), Figure)
        assert path.read_bytes().startswith(magic)
    with pytest.raises(InputError, match=r"storm.jpg must end in .png, .pdf or .gif"):
        dc.draw(tmp_path / "storm.jpg", observed[0], None, ensemble[0], data.source)


def test_a_seed_and_a_place_in_the_batch_determine_the_noise(model):
    observed = torch.rand(2, 5, 1, 16, 16)
    both = dc.forecast(model, observed, members=2, seed=1, sampling_steps=1)
    first = dc.forecast(model, observed[:1], members=2, seed=1, sampling_steps=1)
    other = dc.forecast(model, observed[:1], members=2, seed=2, sampling_steps=1)
    torch.testing.assert_close(first, both[:1], atol=1e-5, rtol=0)
    assert (first - other).abs().max() > 0.01


def test_a_loaded_forecaster_is_in_evaluation_mode(model):
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        (torch.full((1, 5, 1, 16, 16), 200.0), r"must lie in \[0, 1\], not in \[200, 200\]; divide bytes by 255"),
        (torch.zeros(1, 4, 1, 16, 16), r"must have the shape .* = \(B, 5, 1, H, W\), not \(1, 4, 1, 16, 16\)"),
        (torch.zeros(5, 1, 16, 16), "must have the shape"),
    ],
    ids=["bytes", "too few frames", "no batch"],
)
def test_other_frames_are_refused(model, observed, message):
    with pytest.raises(InputError, match=message):
        dc.forecast(model, observed)


def test_a_backbone_alone_makes_one_forecast(weights):
    backbone = dc.load(weights / "False.safetensors", device="cpu")
    observed = torch.rand(1, 5, 1, 16, 16)
    assert dc.forecast(backbone, observed).shape == (1, 1, 20, 1, 16, 16)
    with pytest.raises(InputError, match="leave out members"):
        dc.forecast(backbone, observed, members=2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.safetensors"):
        dc.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(("code", "message"), [("import diffcast", ""), ("import utils, diffcast", "Import diffcast")])
def test_a_strangers_utils_is_not_taken_for_ours(code, message, tmp_path):
    (tmp_path / "utils.py").write_text("stranger = True\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert message in done.stderr
    assert done.returncode == bool(message)
