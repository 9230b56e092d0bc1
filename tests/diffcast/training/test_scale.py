"""The standard deviation of residuals, measured before a training."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from diffcast.training.scale import measured_scale
from tests.tiny import InMemory, tiny_architecture
from utils.errors import InputError


@pytest.fixture
def frames():
    """Sequences `(N, T, C, H, W)` with missing pixels in the future, and others in the last observed frame."""
    frames = torch.rand(9, 25, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for number, one in enumerate(frames):
        one[5 + number :, :, :number, :number] = torch.nan
        one[4, :, 12:, : 2 * number] = torch.nan
    return frames


def measured(frames, trained=False, batch_size=4, **changes):
    model = tiny_architecture("simvp", use_diff=True).build()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(changes.get("weights", 1))
    return measured_scale(Accelerator(cpu=True), model, trained, InMemory(frames), batch_size, seed=0)


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_residuals_are_those_of_persistence_without_missing_pixels(frames, batch_size):
    residual = 2 * (frames[:, 5:] - frames[:, 4:5]).numpy().astype(float)
    assert measured(frames, batch_size=batch_size) == pytest.approx(np.nanstd(residual), rel=0.005)


def test_residuals_are_those_of_a_trained_backbone(frames):
    residual = 2 * frames[:, 5:].numpy().astype(float)[~frames[:, 4:5].isnan().numpy().repeat(20, axis=1)]
    assert measured(frames, trained=True, weights=0) == pytest.approx(np.nanstd(residual), rel=0.005)


def test_residuals_are_those_of_the_sequences_that_the_training_sees(frames):
    class Second(InMemory):
        def order(self, seed, epoch):
            return np.array([1])

    model = tiny_architecture("simvp", use_diff=True).build()
    residual = 2 * (frames[1, 5:] - frames[1, 4:5]).numpy().astype(float)
    found = measured_scale(Accelerator(cpu=True), model, False, Second(frames), 4, seed=0)
    assert found == pytest.approx(np.nanstd(residual), rel=0.005)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_frames_without_any_change_are_refused(value):
    with pytest.raises(InputError, match="--residual_scale auto finds no change in the training sequences"):
        measured(torch.full((9, 25, 1, 16, 16), value))
