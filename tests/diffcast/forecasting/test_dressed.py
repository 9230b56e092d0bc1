"""The dressed trend: whole errors of training forecasts, drawn alike however sequences are batched."""

import pytest
import torch

from diffcast.forecasting.dressed import Dressed, dress
from models import Backbone, build_backbone
from tests.tiny import InMemory
from utils.errors import InputError
from utils.metrics import EnsembleScores

SHAPE, FRAMES_IN, FRAMES_OUT = (1, 4, 4), 2, 3


class Recorded(InMemory):
    """Sequences that remember which of them were read."""

    def __init__(self, frames):
        super().__init__(frames)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


class Wary(Backbone):
    """Forecasts twice the last frame, and only as a forecaster that is not being trained."""

    def trend(self, observed):
        assert not self.training
        assert not torch.is_grad_enabled()
        return 2 * observed[:, -1:].expand(-1, self.frames_out, -1, -1, -1)


def sequences(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, FRAMES_IN + FRAMES_OUT, *SHAPE, generator=generator)


def generators(number, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(number)]


def persistence():
    return build_backbone("persistence", SHAPE, FRAMES_IN, FRAMES_OUT)


def test_the_residuals_are_the_errors_of_training_forecasts():
    frames = sequences(10)
    dressed = dress(Wary(SHAPE, FRAMES_IN, FRAMES_OUT), Recorded(frames), batch_size=4)
    trend = (2 * frames[:, FRAMES_IN - 1 : FRAMES_IN]).clamp(max=1)
    torch.testing.assert_close(dressed.residuals.float(), frames[:, FRAMES_IN:] - trend, rtol=0, atol=2**-12)


def test_a_diffcast_is_dressed_around_its_own_trend(tiny):
    model = tiny()
    frames = torch.rand(3, 25, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    alone, within = (dress(forecaster, Recorded(frames)).residuals for forecaster in (model.backbone, model))
    assert torch.equal(alone, within)


def test_members_are_the_trend_plus_different_whole_residuals():
    residuals = torch.linspace(-0.4, 0.4, 5)[:, None, None, None, None].expand(-1, FRAMES_OUT, *SHAPE)
    trend = torch.full((2, FRAMES_OUT, *SHAPE), 0.8)
    trend[1] = 1.5  # counts as 1
    members = Dressed(persistence(), residuals).dress_trend(trend, 5, generators(2))
    assert members.shape == (2, 5, FRAMES_OUT, *SHAPE)
    assert (members == members[..., :1, :1, :1, :1]).all()
    for found, expected in zip(members[..., 0, 0, 0, 0], ([0.4, 0.6, 0.8, 1, 1], [0.6, 0.8, 1, 1, 1]), strict=True):
        torch.testing.assert_close(found.sort().values, torch.tensor(expected))


def test_draws_depend_on_the_sequence_alone():
    dressed = dress(persistence(), Recorded(sequences(40)))
    observed = sequences(3, seed=1)[:, :FRAMES_IN]
    together = dressed.forecast(observed, 8, generators(3))
    alone = [dressed.forecast(observed[i : i + 1], 8, generators(1, first=i)) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, dressed.forecast(observed, 8, generators(3, first=9)))


def test_the_ensemble_is_calibrated_where_errors_have_one_law():
    def noisy(number, seed):
        noise = torch.randn(number, FRAMES_IN + FRAMES_OUT, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        noise[:, :FRAMES_IN] = 0
        return 0.5 + 0.05 * noise

    dressed = dress(build_backbone("persistence", (1, 8, 8), FRAMES_IN, FRAMES_OUT), Recorded(noisy(200, seed=0)))
    observed, future = noisy(100, seed=1).tensor_split([FRAMES_IN], dim=1)
    scores = EnsembleScores(FRAMES_OUT, members=8)
    scores.update(dressed.forecast(observed, 8, torch.Generator().manual_seed(0)), future)
    assert scores.compute()["spread_skill_ratio"] == pytest.approx(1, abs=0.02)


def test_the_pool_is_spread_over_the_training_set_and_repeats_with_the_seed():
    data = Recorded(torch.zeros(3000, FRAMES_IN + FRAMES_OUT, *SHAPE))
    reads = []
    for seed in (0, 0, 1):
        data.read = []
        assert len(dress(persistence(), data, seed=seed).residuals) == 256
        reads.append(data.read)
    assert reads[0] == reads[1] != reads[2]
    assert [256 * index // 3000 for index in reads[0]] == pytest.approx(range(256), abs=1)


def test_a_pool_grows_with_the_members():
    data = Recorded(torch.zeros(300, FRAMES_IN + FRAMES_OUT, *SHAPE))
    assert dress(persistence(), data, members=290).forecast(torch.zeros(1, FRAMES_IN, *SHAPE), 290).shape[1] == 290


def test_missing_pixels_of_the_truth_leave_no_trace():
    frames = sequences(4)
    frames[0, -1, 0, 0] = torch.nan
    residuals = dress(persistence(), Recorded(frames)).residuals
    assert (residuals[0, -1, 0, 0] == 0).all()
    assert residuals.isfinite().all()


def test_too_few_training_sequences_are_told_before_any_is_read():
    data = Recorded(sequences(5))
    with pytest.raises(InputError, match="6 members the residual of another training sequence, but there are only 5"):
        dress(persistence(), data, members=6)
    assert not data.read
    with pytest.raises(InputError, match="only 5"):
        dress(persistence(), data).forecast(torch.zeros(1, FRAMES_IN, *SHAPE), 6)
