"""Missing radar data: no weight in losses and scores, whatever stands in its place."""

import pytest
import torch
from accelerate import Accelerator

from diffcast.forecasting.forecasts import ForecastSettings, forecast_all
from diffcast.training.settings import TrainingSettings
from diffcast.training.validation import validation_loss
from tests.diffcast.first_steps import frames_with_gaps
from tests.tiny import BACKBONES, InMemory, tiny_architecture
from utils.metrics import Scores


@pytest.fixture
def frames():
    """Two sequences of 25 frames with a gap over time, a frame lost, and one pixel missing."""
    frames = torch.rand(2, 25, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    frames[0, :, :, 3:7, :5] = torch.nan
    frames[1, 9] = torch.nan
    frames[1, 2, 0, 0, 0] = torch.nan
    return frames


def losses(model, frames):
    model.zero_grad()
    observed, future = frames.tensor_split([5], dim=1)
    terms = model(observed, future, torch.Generator().manual_seed(1))
    terms["loss"].backward()
    return terms, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("use_diff", [False, True], ids=["alone", "diffcast"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_gaps_have_no_weight_in_the_loss(frames, backbone, use_diff):
    torch.manual_seed(0)
    model = tiny_architecture(backbone, use_diff).build().eval()
    terms, gradients = losses(model, frames)
    assert all(torch.isfinite(terms[name]) for name in model.loss_terms)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)

    trend = model.backbone.trend if use_diff else model.trend
    with torch.no_grad():
        forecast = trend(frames[:, :5].nan_to_num(0))
    known = frames[:, 5:].clone()
    perfect = torch.where(known.isnan(), torch.nan, forecast)
    exact = torch.cat([frames[:, :5], perfect], dim=1)
    if backbone != "phydnet":  # its loss has more terms
        assert losses(model, exact)[0]["deterministic"] < 1e-12


@pytest.mark.parametrize("use_diff", [False, True], ids=["alone", "diffcast"])
def test_validation_loss_does_not_depend_on_the_batch_size(use_diff):
    torch.manual_seed(0)
    model = tiny_architecture("simvp", use_diff).build()
    found = [
        validation_loss(Accelerator(cpu=True), model, InMemory(frames_with_gaps()), settings, stop=lambda: False)
        for settings in (TrainingSettings(batch_size=size, num_workers=0) for size in (1, 3, 4))
    ]
    assert found[1:] == [pytest.approx(found[0], rel=1e-6)] * 2


def test_gaps_are_drawn_scored_and_forecast_over(frames):
    torch.manual_seed(0)
    model = tiny_architecture("simvp", use_diff=True).build().eval()
    observed, future = frames.tensor_split([5], dim=1)
    settings = ForecastSettings(members=2, sampling_steps=2, forecast_precision="float32")
    found = []
    for filling in (torch.nan, 0.0):
        draws = torch.Generator().manual_seed(0)
        forecasts = forecast_all(model, observed.nan_to_num(filling), settings, draws, "model")
        scores = Scores(255, (64, 128), leads=20, members=2)
        scores.update(forecasts["model"], future)
        found.append(scores.compute())
        assert all(torch.isfinite(forecast).all() for forecast in forecasts.values())
    assert str(found[0]) == str(found[1])
