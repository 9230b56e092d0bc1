"""A forecaster small enough for every test, a folder of storms, and reports without charts."""

import pytest
import torch
from einops import repeat
from torch import nn

from dataset.synthetic.writer import write_sevir
from diffcast import DiffCast, build_diffcast
from diffcast.report import page, svg
from models import Backbone


class Fading(Backbone):
    """The last observed frame times a learnt factor; its second half is more than a white pixel can hold."""

    def __init__(self, frame_shape=(1, 16, 16), frames_in=5, frames_out=20):
        super().__init__(frame_shape, frames_in, frames_out)
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, frames_out)[:, None, None, None])

    def trend(self, observed):
        return self.factor * repeat(observed[:, -1], "b c h w -> b t c h w", t=self.frames_out)


@pytest.fixture
def tiny():
    """Build a DiffCast around `Fading` with weights that are the same every time."""

    def build(frame_shape=(1, 16, 16), frames_in=5, frames_out=20, **options) -> DiffCast:
        torch.manual_seed(0)
        return build_diffcast(Fading(frame_shape, frames_in, frames_out), dim=8, dim_mults=(1, 2), **options)

    return build


@pytest.fixture(scope="session")
def storm_folder(tmp_path_factory):
    """Twelve SEVIR events of 16 x 16 pixels: 45 training, 5 validation and 10 test sequences."""
    folder = tmp_path_factory.mktemp("storms") / "sevir"
    write_sevir(folder, events=12, size=16, resolution=16)
    return folder


@pytest.fixture(scope="session", autouse=True)
def empty_charts():
    """Leave the charts of reports empty: drawing them takes most of the time of a small evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "render", lambda chart, slug: "<svg></svg>")
        yield


@pytest.fixture
def charts(monkeypatch):
    """Draw the charts of reports in a test."""
    monkeypatch.setattr(page, "render", svg.render)
