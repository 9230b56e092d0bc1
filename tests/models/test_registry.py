"""Backbones by name: the project's, a user's own, and what is said about the ones that cannot be built."""

import pytest
import torch

from models import BACKBONES, build_backbone
from utils.errors import InputError

OWN = """
from models import Backbone

class Mean(Backbone):
    def __init__(self, frame_shape, frames_in, frames_out, gain=1.0):
        super().__init__(frame_shape, frames_in, frames_out)
        self.gain = gain

    def trend(self, observed):
        return self.gain * observed.mean(dim=1, keepdim=True).repeat_interleave(self.frames_out, dim=1)

class Silent(Backbone):
    pass

class Stranger:
    def trend(self, observed):
        return observed

number = 3
"""


@pytest.fixture(scope="module", autouse=True)
def my_package(tmp_path_factory):
    """Put a package of a user on the import path."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_pkg").mkdir()
    (folder / "my_pkg" / "my_mod.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_forecasts_the_frames_asked_for(name):
    options = {"simvp": {"spatial_width": 8, "translator_width": 16, "translator_depth": 2}}
    model = build_backbone(name, frame_shape=(1, 32, 32), frames_in=4, frames_out=6, **options.get(name, {}))
    forecast = model.forecast(torch.rand(2, 4, 1, 32, 32), members=3)
    assert forecast.shape == (2, 1, 6, 1, 32, 32)
    assert 0 <= forecast.min() <= forecast.max() <= 1
    assert not forecast.requires_grad


def test_a_users_own_class_is_built_from_its_module():
    model = build_backbone("my_pkg.my_mod:Mean", (1, 8, 8), frames_in=2, frames_out=3, gain=0.5)
    forecast = model.forecast(torch.ones(1, 2, 1, 8, 8))
    assert torch.equal(forecast, torch.full((1, 1, 3, 1, 8, 8), 0.5))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("simpv", {}, "unknown backbone 'simpv': choose one of simvp, phydnet, convgru, earthformer, persistence"),
        ("simvp", {"widht": 3}, "backbone simvp: got an unexpected keyword argument 'widht'; .* spatial_width"),
        ("my_pkg.my_mod:Mean", {"gian": 2}, "unexpected keyword argument 'gian'; .* frames_out, gain"),
        ("my_pkg.absent:Mean", {}, "'my_pkg.absent:Mean' cannot be imported: No module named 'my_pkg.absent'"),
        ("my_pkg.my_mod:Absent", {}, "cannot be imported: .* no attribute 'Absent'"),
        ("my_pkg.my_mod:Stranger", {}, "'my_pkg.my_mod:Stranger' is not a subclass of models.Backbone"),
        ("my_pkg.my_mod:number", {}, "'my_pkg.my_mod:number' is not a subclass of models.Backbone"),
        ("my_pkg.my_mod:Silent", {}, "'my_pkg.my_mod:Silent' does not implement `trend`"),
    ],
)
def test_what_cannot_be_built_is_named(name, options, message):
    with pytest.raises(InputError, match=message):
        build_backbone(name, **options)
