"""ConvGRU against a second implementation, `torch.nn.GRUCell`, and the properties of its structure."""

import json

import pytest
import torch
from torch import nn

from models.convgru import ConvGRU, ConvGRUCell
from tests.golden.reference import arrays, assert_close, official_weights, shapes
from utils.errors import InputError
from utils.official import load_official, rename


def small(frame_shape=(1, 32, 40), frames_in=3, frames_out=4):
    torch.manual_seed(0)
    return ConvGRU(frame_shape, frames_in, frames_out, dims=(4, 6, 5), kernel_sizes=(5, 5, 3), stem_dim=2)


@pytest.fixture(scope="module")
def golden():
    return arrays("convgru_small")


@pytest.fixture(scope="module")
def filled(golden):
    config = json.loads(str(golden["config"]))
    model = ConvGRU(
        (config["channels"], *config["frame_hw"]),
        config["frames_in"],
        config["frames_out"],
        dims=config["filters"],
        kernel_sizes=config["kernels"],
        stem_dim=config["stem"],
    )
    weights = official_weights(shapes("convgru_keys_small"), int(golden["seed"]))
    gain = {True: float(golden["weight_gain"]), False: 1.0}
    load_official(model, {name: weight * gain[weight.ndim > 1] for name, weight in weights.items()})
    return model


@torch.no_grad()
def test_forecast_and_every_state_equal_the_reference(filled, golden):
    states = {}
    cells = [(half, i) for half in ("encoder", "forecaster") for i in range(3)]
    hooks = [
        getattr(filled, half)[i].cell.register_forward_hook(
            lambda module, _, output, key=(half, i + 1): states.update({key: output})
        )
        for half, i in cells
    ]
    forecast = filled.trend(torch.from_numpy(golden["x"]))
    for hook in hooks:
        hook.remove()
    assert_close(forecast, golden["y"], 1e-5)
    for level in (1, 2, 3):
        encoder, forecaster = states["encoder", level], states["forecaster", level]
        for ours, name in (
            (encoder[:, -1], f"encoder_state_{level}"),
            (forecaster[:, 0], f"forecaster_{level}_first"),
            (forecaster[:, -1], f"forecaster_{level}_last"),
        ):
            assert_close(ours, golden[f"mid/{name}"], 1e-5)


def test_cell_on_one_pixel_is_a_gru_cell():
    torch.manual_seed(0)
    cell, reference = ConvGRUCell(3, 4, kernel_size=1), nn.GRUCell(3, 4)
    cell.activation = nn.Tanh()
    with torch.no_grad():
        cell.i2h.weight.zero_()[:, :, 1, 1] = reference.weight_ih  # on one pixel only the kernel's centre counts
        cell.h2h.weight.copy_(reference.weight_hh[..., None, None])
        cell.i2h.bias.copy_(reference.bias_ih)
        cell.h2h.bias.copy_(reference.bias_hh)
    state, inputs = torch.randn(2, 4), torch.randn(2, 3, 3)
    ours = cell(state[..., None, None], inputs[..., None, None], steps=3)
    for step in range(3):
        state = reference(inputs[:, step], state)
        torch.testing.assert_close(ours[:, step, :, 0, 0], state)


@pytest.mark.parametrize(("dims", "count"), [((64, 192, 192), 13_102_305), ((64, 96, 96), 3_865_665)])
def test_parameter_count(dims, count):
    with torch.device("meta"):
        model = ConvGRU(dims=dims)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        model = ConvGRU()
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert ours == rename(shapes("convgru_keys"), model.official_names)


def test_first_frames_do_not_depend_on_the_length_of_the_forecast():
    frames = torch.rand(2, 3, 1, 32, 40)
    torch.testing.assert_close(small(frames_out=2).trend(frames), small(frames_out=6).trend(frames)[:, :2])


def test_forecast_moves_with_the_input():
    model = small((1, 256, 256), frames_in=1, frames_out=1)
    frames = torch.rand(1, 1, 1, 256, 256)
    moved = model.trend(frames.roll((8, 16), dims=(-2, -1)))
    expected = model.trend(frames).roll((8, 16), dims=(-2, -1))
    center = (..., slice(96, 160), slice(96, 160))
    torch.testing.assert_close(moved[center], expected[center])


def test_without_weights_the_forecast_is_the_last_bias():
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head[-1].bias.fill_(0.3)
    assert torch.equal(model.trend(torch.rand(1, 3, 1, 32, 40)), torch.full((1, 4, 1, 32, 40), 0.3))


def test_any_frame_size_and_number_of_channels():
    frames = torch.rand(1, 3, 2, 50, 45)
    model = small((2, 50, 45))
    assert model.trend(frames).shape == (1, 4, 2, 50, 45)
    padded = nn.functional.pad(frames, (0, 3, 0, 6))
    torch.testing.assert_close(model.trend(frames), model.trend(padded)[..., :50, :45])


def test_calls_do_not_influence_each_other():
    model, frames = small(), torch.rand(2, 3, 1, 32, 40)
    first = model.trend(frames)
    model.trend(torch.rand(1, 2, 1, 16, 16))
    assert torch.equal(model.trend(frames), first)
    assert torch.equal(model.forecast(frames), first.clamp(0, 1)[:, None])


def test_training_reaches_every_parameter_also_under_autocast():
    model, frames, truth = small(), torch.rand(2, 3, 1, 32, 40), torch.rand(2, 4, 1, 32, 40)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(frames, truth)["loss"]
        states = model.encoder[0](frames)
    loss.backward()
    assert loss.isfinite()
    assert states.dtype == torch.float32  # they add up over the steps
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_initial_weights_follow_the_mean_of_both_fans():
    torch.manual_seed(0)
    conv = ConvGRU().forecaster[1].cell.h2h
    assert conv.weight.std().item() == pytest.approx((2 / 1.04 / (25 * (192 + 576) / 2)) ** 0.5, rel=0.01)
    assert not conv.bias.any()


def test_levels_must_agree():
    with pytest.raises(InputError, match="dims has 3 levels, kernel_sizes 2"):
        ConvGRU(kernel_sizes=(3, 3))
