"""A forecaster is rebuilt from its file; a file's word is neither imported nor given memory."""

import sys
from dataclasses import replace

import pytest
import torch

from diffcast.forecaster import Architecture, load_forecaster, load_forecaster_weights
from models import Backbone
from utils.errors import InputError
from utils.weights import save_weights

TINY = Architecture("convgru", True, (1, 16, 16), 2, 4, {"stem_dim": 4}, 8, (1, 2), 2, 50)


class Mine(Backbone):
    """A user's own backbone."""

    def trend(self, observed):
        return observed[:, -1:].expand(-1, self.frames_out, -1, -1, -1)


@pytest.fixture
def saved(tmp_path):
    model, path = TINY.build(), tmp_path / "tiny.safetensors"
    save_weights(path, model.state_dict(), {"architecture": TINY.to_metadata()})
    return model, path


def test_a_forecaster_is_rebuilt_from_its_file(saved):
    model, path = saved
    rebuilt, architecture = load_forecaster(path)
    assert architecture == TINY
    weights = model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in rebuilt.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual_scale": 0.2}, "--residual_scale 1.0 / 0.2"),
        ({"dim": 16}, "--dim 8 / 16"),
        ({"backbone": "persistence", "backbone_options": {}}, "--backbone convgru / persistence"),
        ({"backbone_options": {"stem_dim": 8}}, "--backbone_options stem_dim=4 / 8"),
        ({"use_diff": False}, "--use_diff True / False"),
        ({"frames_out": 6, "segment_length": 3}, "--frames_out 4 / 6; --segment_length 2 / 3"),
    ],
)
def test_another_architecture_is_told_apart(saved, changes, message):
    other = replace(TINY, **changes)
    with pytest.raises(InputError, match=rf"\(checkpoint / command line\): {message}; leave out .*\.$"):
        load_forecaster_weights(other.build(), other, saved[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": ["simvp"]},
        {"backbone": "unet"},
        {"use_diff": "yes"},
        {"residual_scale": 0.0},
        {"residual_scale": "1"},
        {"dim": 16},
        {"dim": 4096},
        {"dim": 2**40},
        {"dim": -8},
        {"dim": 8.0},
        {"dim_mults": [1] * 10_000},
        {"dim_mults": 3},
        {"frame_shape": [1, 16]},
        {"segment_length": 0},
        {"timesteps": 10**12},
        {"backbone_options": [1]},
        {"backbone_options": {"stem_dim": 2**40}},
        {"backbone_options": {"stem_dim": "wide"}},
        {"backbone_options": {"dims": [8] * 10_000, "kernel_sizes": [3] * 10_000}},
        {"backbone": "simvp", "backbone_options": {"translator_depth": 10**9}},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_the_weights_is_refused(tmp_path, saved, changes):
    path = tmp_path / "forged.safetensors"
    save_weights(path, saved[0].state_dict(), {"architecture": TINY.to_metadata() | changes})
    with pytest.raises(InputError):
        load_forecaster(path)


def test_a_weight_that_is_missing_or_misshapen_is_named(tmp_path, saved):
    path, weights = tmp_path / "forged.safetensors", saved[0].state_dict()
    first, *_, last = weights
    for forged in (weights | {first: weights[first][:1]}, {name: weights[name] for name in weights if name != last}):
        save_weights(path, forged, {"architecture": TINY.to_metadata()})
        for load in (load_forecaster, lambda path: load_forecaster_weights(TINY.build(), TINY, path)):
            with pytest.raises(InputError, match=rf"forged.safetensors .*1 weights .*({first}|{last})"):
                load(path)


def test_a_backbone_outside_of_the_project_needs_the_users_word(tmp_path, monkeypatch):
    name = "evil_backbone:Mine"
    (tmp_path / "evil_backbone.py").write_text("from tests.diffcast.test_forecaster import Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own.safetensors"
    save_weights(path, {}, {"architecture": Architecture(name, frame_shape=(1, 16, 16)).to_metadata()})
    for trusted, told in {None: f"has the backbone {name}", "models:Persistence": "contradicts"}.items():
        with pytest.raises(InputError, match=rf"own\.safetensors {told}"):
            load_forecaster(path, backbone=trusted)
        assert "evil_backbone" not in sys.modules
    assert isinstance(load_forecaster(path, backbone=name)[0], Backbone)
