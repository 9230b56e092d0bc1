"""Forecasts of maps of any size, in tiles or in one piece."""

from dataclasses import replace

import pytest
import torch

import diffcast as dc
from diffcast.tiles import Tiles, blended_trend
from models import build_backbone
from tests.tiny import tiny_architecture
from utils.errors import InputError

SIZE = (21, 36)  # of a map; the models are for frames of 16 x 16


def build(backbone="simvp", use_diff=True):
    torch.manual_seed(0)
    return replace(tiny_architecture(backbone, use_diff), frames_out=6).build().eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def observed():
    return torch.rand(1, 5, 1, *SIZE, generator=torch.Generator().manual_seed(1))


def forecast(model, observed, **options):
    return dc.forecast(model, observed, **{"members": 2, "sampling_steps": 2} | options)


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (21, 36), (100, 28), (5, 40), (3, 2), (1, 1)])
def test_blended_tiles_of_a_map_are_the_map(size, model):
    maps, tiles = torch.rand(3, 2, *size), Tiles.of(size, model)
    assert tiles.size == (16, 16)
    together = tiles.blend(lambda part: tiles.cut(maps, part), 3, at_once=4)
    torch.testing.assert_close(together, maps)
    assert {len(part) <= 4 for part in tiles.parts(4)} == {True}


def test_a_map_of_the_models_size_is_one_tile_whatever_is_asked_for(model):
    for tile in (None, 0, 8, 32):
        assert Tiles.of((16, 16), model, tile) == Tiles((16, 16), (16, 16))


@pytest.mark.parametrize("size", [SIZE, (9, 40), (16, 16), (3, 5)])
@pytest.mark.parametrize("backbone", ["simvp", "phydnet", "convgru", "earthformer", "advection"])
def test_every_backbone_forecasts_maps_of_any_size(backbone, size):
    network = build_backbone("advection", (1, 16, 16), 5, 6) if backbone == "advection" else build(backbone, False)
    frames = torch.rand(1, 5, 1, *size)
    made = forecast(network, frames, members=1)
    assert made.shape == (1, 1, 6, 1, *size)
    if backbone == "earthformer" and size != (16, 16):
        with pytest.raises(InputError, match="tile must be 16 x 16, as the backbone takes no other"):
            forecast(network, frames, members=1, tile=0)
    else:
        assert forecast(network, frames, members=1, tile=0).shape == made.shape


@pytest.mark.parametrize("backbone", ["simvp", "phydnet", "convgru"])
def test_one_piece_is_the_network_applied_to_the_map(backbone):
    network, frames = build(backbone, use_diff=False), torch.rand(1, 5, 1, 24, 40)
    with torch.no_grad():
        torch.testing.assert_close(blended_trend(network, frames, 0, 1), network.trend(frames))


def test_sizes_that_the_levels_do_not_divide_are_mirrored(model, observed):
    _, columns = Tiles.of(SIZE, model, 0).size
    assert columns == SIZE[1]
    mirrored = torch.cat([observed, observed[..., -1:, :]], dim=-2)
    with torch.no_grad():
        expected = model.backbone.trend(mirrored)[..., : SIZE[0], :]
        torch.testing.assert_close(blended_trend(model.backbone, observed, 0, 1), expected)


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_noise_of_a_place_depends_on_the_seed_alone(stochastic, model, observed):
    def noise_alone(denoise, noise, schedule, steps, clip, draw):
        denoise(noise, torch.zeros(len(noise), dtype=torch.long))
        return draw(noise) if stochastic else noise

    drawn = [
        model.generate(observed, 3, torch.Generator().manual_seed(1), noise_alone, forecast_batch=at_once, tile=tile)
        for at_once, tile in ((None, None), (1, None), (2, 0), (7, 32))
    ]
    assert drawn[0].residual.std() == pytest.approx(1, abs=0.02)
    for other in drawn[1:]:
        assert torch.equal(other.residual, drawn[0].residual)


@pytest.mark.parametrize("tile", [None, 0])
def test_forecasts_do_not_depend_on_how_many_are_made_at_once(tile, model, observed):
    options = {"members": 3, "sampler": "sde-dpm", "tile": tile}
    expected = forecast(model, observed, forecast_batch=1, **options)
    for forecast_batch in (2, 7, 100):
        made = forecast(model, observed, forecast_batch=forecast_batch, **options)
        torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


def test_networks_get_no_more_frames_at_once_than_asked_for(model, observed, monkeypatch):
    seen, conditioned, trend = [], model.residual.conditioned, model.backbone.trend

    def counting(*given):
        denoise = conditioned(*given)
        return lambda noisy, time: seen.append(noisy.shape) or denoise(noisy, time)

    monkeypatch.setattr(model.residual, "conditioned", counting)
    monkeypatch.setattr(model.backbone, "trend", lambda frames: seen.append(frames.shape) or trend(frames))
    forecast(model, observed, members=4, forecast_batch=6)
    assert {shape[-2:] for shape in seen} == {(16, 16)}
    assert max(shape[0] for shape in seen) in (4, 5, 6)
    seen.clear()
    forecast(model, observed, members=4, forecast_batch=7, tile=0)  # a map is as large as 3.1 frames
    assert {shape[-2:] for shape in seen} == {(22, 36)}
    assert max(shape[0] for shape in seen) == 2


def test_members_have_no_seams_even_if_tiles_disagree(model, observed, monkeypatch):
    conditioned = model.residual.conditioned

    def biased(*given):
        denoise, bias = conditioned(*given), torch.randn(1, generator=torch.Generator().manual_seed(len(seen)))
        return lambda noisy, time: seen.append(1) or denoise(noisy, time) + bias

    seen = []
    monkeypatch.setattr(model.residual, "conditioned", biased)
    made = model.generate(observed, 2, torch.Generator().manual_seed(0), "dpm", 2, forecast_batch=2)
    tiles = Tiles.of(SIZE, model)
    assert len(seen) == 2 * 2 * len(tiles.corners)
    for axis in (0, 1):
        edges = {corner[axis] + end for corner in tiles.corners for end in (0, 16)} - {0, SIZE[axis]}
        steps = made.residual.diff(dim=axis - 2).abs().movedim(axis - 2, 0).flatten(1).mean(1)
        across = torch.tensor([line + 1 in edges for line in range(len(steps))])
        assert steps[across].mean() <= steps[~across].mean()


def test_progress_adds_up_to_the_segments_of_all_members(model, observed):
    shares = []
    model.generate(observed, 3, None, "dpm", 2, forecast_batch=5, progress=shares.append)
    assert sum(shares) == pytest.approx(3 * model.segments)
    assert len(shares) > 2 * 2 * model.segments


@pytest.mark.parametrize(
    ("tile", "message"), [(15, "multiple of 2 pixels .* not 15"), (-2, "tile must be at least 0, not -2")]
)
def test_impossible_tiles_are_refused(tile, message, model, observed):
    with pytest.raises(InputError, match=message):
        forecast(model, observed, tile=tile)
