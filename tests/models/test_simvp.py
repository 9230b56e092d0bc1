"""SimVP against its official form, and at sizes that form was never given."""

import pytest
import torch

from models.simvp import SimVP
from tests.golden.reference import arrays, assert_close, official_weights, shapes
from utils.errors import InputError
from utils.official import load_official, rename

GOLDEN = arrays("simvp_32")
SHAPES = shapes("keys_simvp")


@pytest.fixture(scope="module")
def official():
    model = SimVP((1, 32, 32))
    load_official(model, official_weights(SHAPES, seed=101))
    return model


@pytest.fixture(scope="module")
def result(official):
    """Return the training pass, after its backward pass."""
    terms = official(*(torch.from_numpy(GOLDEN[name]) for name in ("frames_in", "frames_gt")))
    terms["loss"].backward()
    return terms


def test_names_and_shapes_are_the_official_ones():
    with torch.device("meta"):
        model = SimVP()
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == rename(
        SHAPES, model.official_names
    )
    assert sum(p.numel() for p in model.parameters()) == 11_063_105


def test_forecast_and_loss_are_the_official_ones(result):
    assert_close(result["forecast"], GOLDEN["pred"], 1e-4)
    assert_close(result["loss"], GOLDEN["loss"], 1e-6)


def test_gradients_are_the_official_ones(official, result):
    expected = rename(dict(zip(GOLDEN["grad_names"], GOLDEN["grad_norms"], strict=True)), official.official_names)
    ours = {name: parameter.grad.norm().item() for name, parameter in official.named_parameters()}
    assert ours == pytest.approx(expected, rel=2e-3)


def test_a_longer_forecast_begins_with_the_shorter_one():
    long, short = (
        SimVP((2, 16, 24), frames_in=3, frames_out=t, spatial_width=8, translator_width=16, translator_depth=2)
        for t in (7, 4)
    )
    short.load_state_dict(long.state_dict())
    frames = torch.rand(2, 3, 2, 16, 24)
    assert long.trend(frames).shape == (2, 7, 2, 16, 24)
    assert torch.equal(long.trend(frames)[:, :4], short.trend(frames))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_shape": (1, 31, 32)}, "even height and width, not 31 x 32 pixels"),
        ({"spatial_width": 12}, "spatial_width that is a multiple of 8, not 12"),
        ({"translator_width": 0}, "translator_width that is a multiple of 16, not 0"),
        ({"translator_depth": 1}, "translator_depth of at least 2, not 1"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SimVP(**options)
