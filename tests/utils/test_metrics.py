"""Laws that the scores obey, whatever the data."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch.testing import assert_close

from utils.metrics import CategoricalScores, EnsembleScores, FrameErrors, Scores, score
from utils.metrics.categorical import Contingency
from utils.metrics.ssim import ssim

THRESHOLDS = (64, 128, 192)
LEADS, MEMBERS = 3, 4


def new_scores():
    return Scores(255, THRESHOLDS, LEADS, MEMBERS, pools=(4,))


def scored(forecast, target):
    scores = new_scores()
    scores.update(forecast, target)
    return scores


@pytest.fixture(scope="module")
def data():
    """Seven sequences: an ensemble forecast and its target, with a gap in one target and one member."""
    generator = torch.Generator().manual_seed(0)
    forecast = torch.rand(7, MEMBERS, LEADS, 1, 14, 17, generator=generator)
    target = torch.rand(7, LEADS, 1, 14, 17, generator=generator)
    target[1, 2, 0, :3] = torch.nan
    forecast[4, 1, 0, 0, 5, 5] = torch.nan
    return forecast, target


def assert_same_state(a, b):
    a, b = a.state(), b.state()
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name], rtol=1e-12, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(owner=st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_any_split_of_the_sequences_merges_to_the_whole(data, owner):
    forecast, target = data
    merged = new_scores()
    for process in range(3):
        mine = torch.tensor(owner) == process
        merged.merge(scored(forecast[mine], target[mine]))
    assert_same_state(merged, scored(forecast, target))


def test_the_state_sums_over_processes(data):
    forecast, target = data
    states = [scored(forecast[part], target[part]).state() for part in (slice(0, 2), slice(2, 7))]
    total = new_scores()
    total.load_state({name: states[0][name] + states[1][name] for name in states[0]})
    whole = scored(forecast, target)
    assert_same_state(total, whole)
    assert total.compute()["crps"] == pytest.approx(whole.compute()["crps"], rel=1e-12)


def test_blocks_do_not_change_the_scores(data, monkeypatch):
    whole = scored(*data)
    monkeypatch.setattr(score, "BLOCK_VALUES", 1)
    assert_same_state(scored(*data), whole)


def test_the_order_of_members_does_not_matter(data):
    forecast, target = data
    assert_same_state(scored(forecast.flip(1), target), scored(forecast, target))


def test_computed_scores_survive_json(data):
    computed = scored(*data).compute()
    assert json.loads(json.dumps(computed)).keys() == computed.keys()
    assert computed["ensemble_mean"].keys() == computed.keys() - {"ensemble_mean"} - {
        key for key in computed if key.startswith(("crps", "spread", "skill"))
    }
    assert all(len(curve) == LEADS for key, curve in computed.items() if key.endswith("_per_lead"))


def test_a_foreign_state_is_refused(data):
    with pytest.raises(ValueError, match="needs"):
        new_scores().merge(Scores(255, THRESHOLDS, LEADS, members=1, pools=(4,)))
    with pytest.raises(ValueError, match="needs"):
        FrameErrors(255, leads=3).merge(FrameErrors(255, leads=1))


def test_shapes_that_do_not_fit_are_refused(data):
    forecast, target = data
    with pytest.raises(ValueError, match=r"\(B, M, T, C, H, W\)"):
        new_scores().update(forecast[:, 0], target)
    with pytest.raises(ValueError, match="3 lead times"):
        new_scores().update(forecast[:, :, :1], target[:, :1])
    with pytest.raises(ValueError, match="4 members"):
        new_scores().update(forecast[:, :1], target)
    with pytest.raises(ValueError, match="ascend"):
        CategoricalScores(255, (74, 16), leads=1)


def test_half_precision_forecasts_are_scored_in_float32():
    frames = (torch.arange(256) / 256).view(1, 1, 1, 1, 16, 16)  # exact in bfloat16, but not times 200
    scores = CategoricalScores(200, (130,), leads=1)
    scores.update(frames.bfloat16(), frames[:, 0])
    assert scores.compute()["csi"] == 1


def test_heidke_skill_survives_counts_of_a_large_test_set():
    counts = [torch.tensor(count) for count in (10**10, 2 * 10**9, 3 * 10**9, 10**11)]
    small = [count // 10**6 for count in counts]
    assert_close(Contingency(*counts).hss(), Contingency(*small).hss())


def test_bias_without_observations_is_left_out_of_its_means():
    target = torch.zeros(1, 2, 1, 12, 12)
    target[:, 0] = 1
    scores = CategoricalScores(255, (100,), leads=2)
    scores.update(torch.ones(1, 1, 2, 1, 12, 12), target)
    computed = scores.compute()
    assert computed["bias"] == 1
    assert computed["bias_empty_cells"] == 1
    assert math.isnan(computed["bias_per_lead"][1])
    assert computed["bias_total"] == 2


def test_pooling_forgives_a_shift_within_the_block():
    target = torch.zeros(1, 1, 1, 6, 10)
    target[..., 5, 9] = 1  # in a partial block
    scores = CategoricalScores(255, (100,), leads=1, pools=(4, 16))
    scores.update(target.roll((-1, -1), (-2, -1))[:, None], target)
    computed = scores.compute()
    assert (computed["csi"], computed["csi_pool4"], computed["csi_pool16"]) == (0, 1, 1)
    assert scores.state()["counts_pool4"].sum() == 2 * 3
    assert scores.state()["counts_pool16"].sum() == 1


def test_a_block_with_a_missing_pixel_is_left_out():
    target = torch.ones(1, 1, 1, 8, 8)
    target[..., 0, 0] = torch.nan
    scores = CategoricalScores(255, (100,), leads=1, pools=(4,))
    scores.update(torch.ones(1, 1, 1, 1, 8, 8), target)
    assert scores.state()["counts"].sum() == 63
    assert scores.state()["counts_pool4"].flatten().tolist() == [3, 0, 0, 0]


@pytest.mark.parametrize("size", [(11, 11), (40, 29)])
def test_ssim_equals_scikit_image(size):
    x, y = torch.rand(2, *size, generator=torch.Generator().manual_seed(1)).double()
    expected = structural_similarity(
        255 * y.numpy(),
        255 * x.numpy(),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-12)


def test_frames_smaller_than_the_window_have_no_ssim():
    scores = FrameErrors(255, leads=1)
    scores.update(torch.ones(1, 1, 1, 1, 8, 20), torch.ones(1, 1, 1, 8, 20))
    computed = scores.compute()
    assert math.isnan(computed["ssim"])
    assert (computed["mse"], computed["psnr"], computed["perfect_frames"]) == (0, math.inf, 1)


def test_frames_with_gaps_are_left_out_of_ssim_only():
    forecast, target = torch.rand(2, 1, 1, 1, 12, 12), torch.rand(2, 1, 1, 12, 12)
    whole, gap = FrameErrors(255, leads=1), FrameErrors(255, leads=1)
    whole.update(forecast[:1], target[:1])
    target[1, ..., 0] = torch.nan
    gap.update(forecast, target)
    assert gap.compute()["ssim"] == whole.compute()["ssim"]
    assert gap.state()["frames"] == 2


@pytest.mark.parametrize("members", [2, 8])
def test_an_ensemble_drawn_from_the_law_of_the_observation_is_calibrated(members):
    generator = torch.Generator().manual_seed(2)
    scores = EnsembleScores(leads=1, members=members)
    scores.update(
        torch.rand(1, members, 1, 1, 256, 256, generator=generator),
        torch.rand(1, 1, 1, 256, 256, generator=generator),
    )
    computed = scores.compute()
    assert computed["spread_skill_ratio"] == pytest.approx(1, abs=0.01)
    assert computed["crps_fair"] == pytest.approx(1 / 6, rel=0.02)  # of the uniform law, for any M
    assert computed["crps"] == pytest.approx((1 + 1 / members) / 6, rel=0.02)
