"""Advection: moving rain goes on as it went, whatever its speed, and still rain stays."""

import math

import pytest
import torch
from einops import rearrange

from dataset.synthetic.storms import storms
from diffcast import build_diffcast
from models import build_backbone
from models.advection import advect, estimate_motion

BORDER = 16  # pixels that what comes from outside may reach


def moving(dx, dy, frames=11, size=64, seed=0):
    """Waves `(1, frames, 1, size, size)` in all directions that move by (dx, dy) pixels per frame."""
    generator = torch.Generator().manual_seed(seed)
    waves = 12
    angle, phase = 2 * math.pi * torch.rand(2, waves, generator=generator)
    k = 2 * math.pi / (20 + 40 * torch.rand(waves, generator=generator))
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(size), torch.arange(size), indexing="ij")
    along = (x - dx * t)[..., None] * angle.cos() + (y - dy * t)[..., None] * angle.sin()
    return rearrange(0.5 + (k * along + phase).cos().sum(-1) / (2 * waves), "t h w -> 1 t 1 h w")


def forecast(frames, frames_out=6):
    model = build_backbone("advection", frames.shape[2:], frames.shape[1], frames_out)
    return model.forecast(frames)[:, 0]


@pytest.mark.parametrize(
    ("dx", "dy"), [(1, -2), (0.6, -0.35), (0, 0.1), (7, 3)], ids=["whole", "sub-pixel", "slow", "fast"]
)
def test_a_moving_pattern_goes_on(dx, dy):
    frames = moving(dx, dy)
    motion = estimate_motion(frames[:, :5])
    expected = torch.tensor([[[dx]], [[dy]]]).expand_as(motion).float()
    torch.testing.assert_close(motion, expected, rtol=0, atol=0.15)
    found = forecast(frames[:, :5], frames_out=2)[..., BORDER:-BORDER, BORDER:-BORDER]
    torch.testing.assert_close(found, frames[:, 5:7, :, BORDER:-BORDER, BORDER:-BORDER], rtol=0, atol=0.01)


def test_advection_by_whole_pixels_shifts_and_lets_no_rain_in():
    frame = torch.rand(2, 1, 9, 12, generator=torch.Generator().manual_seed(0))
    motion = torch.tensor([2.0, -1.0])[:, None, None].expand(2, 2, 9, 12)
    shifted = torch.zeros(2, 3, 1, 9, 12)
    for lead in (1, 2, 3):
        shifted[:, lead - 1, :, : 9 - lead, 2 * lead :] = frame[:, :, lead:, : 12 - 2 * lead]
    torch.testing.assert_close(advect(frame, motion, leads=3), shifted, rtol=0, atol=1e-5)


def test_rotating_rain_keeps_its_distance():
    y, x = torch.meshgrid(*[torch.arange(-32.0, 33)] * 2, indexing="ij")
    steps, angle = 6, math.pi / 2  # a quarter turn
    motion = torch.stack([-y, x])[None] * angle / steps
    drop = torch.exp(-((x - 20) ** 2 + y**2) / 18)[None, None]
    turned = torch.exp(-(x**2 + (y - 20) ** 2) / 18)[None, None]
    found = advect(drop, motion, steps)[:, -1]
    centre = [(found * axis).sum() / found.sum() for axis in (x, y)]
    assert math.hypot(*centre) == pytest.approx(20, abs=0.7)
    assert (found - turned).abs().max() < 0.2


@pytest.mark.parametrize("shape", [(2, 5, 1, 33, 70), (1, 2, 3, 7, 20), (1, 5, 1, 2, 2)])
def test_rain_that_does_not_move_persists(shape):
    frame = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(0))
    for last in (frame, torch.zeros_like(frame), torch.full_like(frame, 0.3)):
        still = last[:, None].repeat(1, shape[1], 1, 1, 1)
        expected = last[:, None].repeat(1, 6, 1, 1, 1)
        torch.testing.assert_close(forecast(still), expected, rtol=0, atol=1e-4)


def test_a_single_frame_has_no_motion():
    frame = moving(1, 0, frames=1)
    torch.testing.assert_close(forecast(frame), frame.repeat(1, 6, 1, 1, 1), rtol=0, atol=1e-5)


def test_dry_areas_move_with_the_rain_around_them():
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    frames = torch.stack([torch.exp(-((x - 40 - 2 * t) ** 2 + (y - 40) ** 2) / 200) for t in range(5)])[None, :, None]
    motion = estimate_motion(frames)
    torch.testing.assert_close(motion[:, 0], torch.full((1, 128, 128), 2.0), rtol=0, atol=0.1)


def test_it_beats_persistence_on_storms():
    frames = storms(4, frames=15, size=64, seed=3).float()[:, :, None] / 255
    observed, future = frames.tensor_split([5], dim=1)
    error = (forecast(observed, 10) - future).abs().mean()
    assert error < 0.75 * (observed[:, -1:] - future).abs().mean()


def test_a_sequence_does_not_depend_on_its_batch_nor_on_autocast():
    frames = torch.cat([moving(2, 1, frames=5), moving(-1, 0, frames=5, seed=1)])
    both = forecast(frames)
    torch.testing.assert_close(forecast(frames[1:]), both[1:], rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(forecast(frames), both)


def test_diffcast_trains_around_it_without_gradients_through_the_motion():
    frames = moving(1, 0, size=16).requires_grad_()
    backbone = build_backbone("advection", (1, 16, 16), frames_in=5, frames_out=6)
    assert not backbone.trend(frames[:, :5]).requires_grad
    model = build_diffcast(backbone, dim=8, dim_mults=(1, 2))
    model(*frames.detach().tensor_split([5], dim=1), torch.Generator().manual_seed(0))["loss"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_shapes_alone_suffice_to_tell_its_cost():
    assert forecast(torch.empty(1, 5, 1, 64, 64, device="meta")).shape == (1, 6, 1, 64, 64)
