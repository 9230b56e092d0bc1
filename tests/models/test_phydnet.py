"""PhyDNet against its official form: numbers, names, and what a caller may rely on."""

import numpy as np
import pytest
import torch

from models.backbone import squared_error
from models.phydnet import PhyDNet, moment_basis
from tests.golden.reference import arrays, assert_close, official_weights, shapes
from utils.errors import InputError
from utils.official import load_official, rename

SHAPES = shapes("keys_phydnet")


@pytest.fixture(scope="module")
def golden():
    return arrays("phydnet_32")


@pytest.fixture(scope="module")
def official():
    model = PhyDNet((1, 32, 32))
    load_official(model, official_weights(SHAPES, seed=102))
    return model


@pytest.fixture(scope="module")
def frames(golden):
    return torch.from_numpy(golden["frames_in"]), torch.from_numpy(golden["frames_gt"])


def small(frames_in=3, frames_out=4):
    torch.manual_seed(0)
    return PhyDNet((1, 16, 24), frames_in, frames_out, dim=32, lstm_dims=(16,), kernel_size=3)


def test_names_and_shapes_are_the_official_ones():
    with torch.device("meta"):
        model = PhyDNet()
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert ours == rename(SHAPES, model.official_names, model.official_dropped)
    assert sum(p.numel() for p in model.parameters()) == 3_091_732


def test_forecast_is_the_official_one(official, frames, golden):
    assert_close(official.trend(frames[0]), golden["pred_inference"], 5e-5)
    assert_close(official(*frames)["forecast"], golden["pred_loss_path"], 5e-5)


def test_states_after_the_first_frame_are_the_official_ones(official, frames, golden):
    first = {}
    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: first.setdefault(name, output))
        for name, module in (("physical", official.physical_cell), ("lstm", official.residual_cells[-1]))
    ]
    predictions = official.predict(frames[0])
    for hook in hooks:
        hook.remove()
    assert_close(first["physical"], golden["phy_h_after_frame0"], 2e-5)
    assert_close(first["lstm"][0], golden["lstm_h2_after_frame0"], 2e-5)
    assert_close(first["lstm"][1], golden["lstm_c2_after_frame0"], 2e-5)
    assert_close(predictions[:, 0], golden["out_after_frame0"], 2e-5)


def test_loss_and_its_terms_are_the_official_ones(official, frames, golden):
    errors = squared_error(official.predict(frames[0]), torch.cat(frames, dim=1)[:, 1:], dim=(2, 3, 4))
    assert_close(errors[:4], golden["loss_reconstruction"], 1e-6)
    assert_close(errors[4:], golden["loss_forecast"], 1e-6)
    assert_close(official.physical_cell.moment_errors(), golden["loss_moment"], 1e-6)
    terms = official(*frames)
    assert_close(terms["loss"], golden["loss_total"], 1e-4)
    assert terms["deterministic"] is terms["loss"]


def test_moments_are_the_official_ones(official, golden):
    assert_close(moment_basis(7), golden["moment_basis"], 1e-12)
    assert_close(official.physical_cell.moments()[0], golden["moment_matrix_in0"], 1e-6)


def test_gradients_are_the_official_ones(official, frames, golden):
    official.zero_grad()
    official(*frames)["loss"].backward()
    norms = dict(zip(golden["grad_names"], golden["grad_norms"], strict=True))
    expected = rename(norms, official.official_names, official.official_dropped)
    ours = {name: parameter.grad.norm().item() for name, parameter in official.named_parameters()}
    assert ours == pytest.approx(expected, rel=2e-3)


def test_derivative_kernels_have_no_moment_error():
    cell = small().physical_cell
    inverse = torch.linalg.inv(cell.moment_basis)
    stencils = torch.einsum("ai,bj->ijab", inverse, inverse).flatten(0, 1)
    with torch.no_grad():
        cell.derivatives.weight.copy_(stencils[:, None])
    assert_close(cell.moment_errors(), np.zeros(32), 1e-10)


def test_calls_do_not_influence_each_other():
    model, frames = small(), torch.rand(2, 3, 1, 16, 24)
    first = model.trend(frames)
    model.trend(torch.rand(1, 2, 1, 32, 32))
    assert torch.equal(model.trend(frames), first)
    assert torch.equal(model.forecast(frames), first[:, None])


def test_a_single_observed_frame_is_enough():
    model = small(frames_in=1)
    terms = model(torch.rand(2, 1, 1, 16, 24), torch.rand(2, 4, 1, 16, 24))
    assert terms["forecast"].shape == (2, 4, 1, 16, 24)
    assert terms["loss"].isfinite()


def test_autocast_changes_nothing():
    model, frames, truth = small(), torch.rand(2, 3, 1, 16, 24), torch.rand(2, 4, 1, 16, 24)
    expected = model(frames, truth)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = model(frames, truth)
    assert torch.equal(under_autocast["forecast"], expected["forecast"])
    assert torch.equal(under_autocast["loss"], expected["loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_shape": (1, 30, 32)}, "multiples of 4, not 30 x 32 pixels"),
        ({"dim": 48}, "dim that is a multiple of 32, not 48"),
        ({"kernel_size": 4}, "odd kernel_size, not 4"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PhyDNet(**options)
