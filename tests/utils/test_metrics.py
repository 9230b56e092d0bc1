"""Laws that the scores obey, whatever the data."""

import json
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch.testing import assert_close

from utils.errors import InputError
from utils.metrics import (
    CategoricalScores,
    EnsembleScores,
    FractionsSkill,
    FrameErrors,
    PerceptualDistance,
    Scores,
    StructuralSimilarity,
    load_lpips,
    probability_matched_mean,
    score,
)
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
    return random_data()


def random_data():
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
        tolerance = 1e-6 if "similarity" in name else 1e-12
        assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


@settings(max_examples=10, deadline=None)
@given(owner=st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_any_split_of_the_sequences_merges_to_the_whole(owner):
    forecast, target = random_data()
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


def test_the_terms_of_the_sequences_sum_to_the_state(data):
    scores = new_scores()
    terms = scores.update(*data)
    assert terms.keys() == scores.state().keys()
    for name, sums in scores.state().items():
        assert terms[name].shape == (7, *sums.shape)
        assert terms[name].dtype == sums.dtype
        assert terms[name].isfinite().all(), f"{name}: a sequence of weight 0 would be NaN"
        assert_close(terms[name].sum(0), sums)


def test_weighted_terms_score_a_resampled_set(data):
    forecast, target = data
    drawn = torch.tensor([0, 2, 2, 3, 5, 5, 5])
    weights = torch.bincount(drawn, minlength=7)
    resampled, terms = new_scores(), new_scores().update(forecast, target)
    resampled.load_state({name: torch.einsum("b,b...->...", weights.to(term), term) for name, term in terms.items()})
    assert_same_state(resampled, scored(forecast[drawn], target[drawn]))


def test_perfect_frames_of_undrawn_sequences_do_not_count():
    forecast, target = torch.rand(2, 1, 1, 1, 16, 16), torch.rand(2, 1, 1, 16, 16)
    target[0] = forecast[0, 0]
    errors, second = FrameErrors(255, leads=1), FrameErrors(255, leads=1)
    terms = errors.update(forecast, target)
    assert errors.compute()["psnr"] == math.inf
    errors.load_state({name: 0 * term[0] + 1 * term[1] for name, term in terms.items()})
    second.update(forecast[1:], target[1:])
    assert errors.compute() == second.compute()


def test_what_is_forecast_at_missing_pixels_is_ignored(data):
    forecast, target = data
    missing = torch.isnan(target[:, None] + forecast.sum(dim=1, keepdim=True)).expand_as(forecast)
    assert missing.any()
    for garbage in (math.nan, math.inf, -3.0, 1.0):
        other = scored(forecast.masked_fill(missing, garbage), target.masked_fill(missing[:, 0], math.nan)).state()
        for name, sums in scored(forecast, target).state().items():
            assert torch.equal(other[name], sums), name


def test_the_order_of_members_does_not_matter(data):
    forecast, target = data
    flipped, straight = flat(scored(forecast.flip(1), target).compute()), flat(scored(forecast, target).compute())
    assert flipped.keys() == straight.keys()
    assert list(flipped.values()) == pytest.approx(list(straight.values()), rel=1e-6, nan_ok=True)


def flat(value, name=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{name}/{key}").items()}
    return {name: value}


def test_computed_scores_survive_json(data):
    computed = scored(*data).compute()
    assert json.loads(json.dumps(computed)).keys() == computed.keys()
    of_ensembles = ("crps", "spread", "skill", "rank", "reliability", "brier", "roc", "fss_prob", "ensemble_", "pm_")
    assert computed["ensemble_mean"].keys() == {key for key in computed if not key.startswith(of_ensembles)}
    assert computed["pm_mean"].keys() == computed["ensemble_mean"].keys()
    single = Scores(255, THRESHOLDS, LEADS, pools=(4,))
    single.update(data[0][:, :1], data[1])
    assert single.compute().keys() == computed["pm_mean"].keys() | {
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
    for thresholds in ((74, 16), (0, 16)):
        with pytest.raises(ValueError, match="ascend"):
            CategoricalScores(255, thresholds, leads=1)


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
    assert ssim(x[None, None], y[None]).item() == pytest.approx(expected, abs=1e-6)


def test_frames_smaller_than_the_window_have_no_ssim():
    similarity = StructuralSimilarity(leads=1)
    similarity.update(torch.ones(1, 1, 1, 1, 8, 20), torch.ones(1, 1, 1, 8, 20))
    assert math.isnan(similarity.compute()["ssim"])


def test_frames_with_gaps_are_left_out_of_ssim_and_spectrum_only():
    forecast, target = torch.rand(2, 2, 1, 1, 12, 12), torch.rand(2, 1, 1, 12, 12)
    whole, gap = (Scores(255, THRESHOLDS, leads=1, members=2) for _ in range(2))
    whole.update(forecast[:1], target[:1])
    target[1, ..., 0] = torch.nan
    gap.update(forecast, target)
    for key in ("ssim", "spectrum", "spectrum_target"):
        assert gap.compute()[key] == whole.compute()[key]
    assert gap.state()["errors/frames"] == 4


def test_the_probability_matched_mean_is_the_mean_in_pattern_and_the_members_in_distribution():
    forecast = torch.tensor([[0.0, 0.2, 0.0, 1.0], [0.0, 0.0, 0.4, 0.6]]).view(1, 2, 1, 1, 2, 2)
    target = torch.zeros(1, 1, 1, 2, 2)
    # means 0, .1, .2, .8; members in pairs (0, 0), (0, 0), (.2, .4), (.6, 1)
    assert_close(probability_matched_mean(forecast, target).flatten(), torch.tensor([0, 0, 0.3, 0.8]))
    target[..., 1, 0] = torch.nan  # takes no part: pairs (0, 0), (0, .2), (.6, 1)
    assert_close(probability_matched_mean(forecast, target).flatten(), torch.tensor([0, 0.1, 0, 0.8]))


def test_equal_means_are_matched_by_position():
    forecast = torch.tensor([[0.2, 0.4, 0.0], [0.4, 0.2, 0.6]]).view(1, 2, 1, 1, 1, 3)
    matched = probability_matched_mean(forecast, torch.zeros(1, 1, 1, 1, 3))
    assert_close(matched.flatten(), torch.tensor([0.1, 0.3, 0.5]))


def test_one_member_is_its_own_probability_matched_mean(data):
    forecast, target = data[0][:, :1].nan_to_num(0), data[1].nan_to_num(0)
    assert torch.equal(probability_matched_mean(forecast, target), forecast)


def test_gilbert_skill_leaves_out_the_hits_of_chance():
    assert Contingency(*map(torch.tensor, (20, 10, 30, 40))).ets() == pytest.approx((20 - 15) / (60 - 15))
    assert Contingency(*map(torch.tensor, (9, 21, 21, 49))).ets() == pytest.approx(0)


def test_windows_that_meet_score_shifted_events():
    target = torch.zeros(1, 1, 1, 8, 8)
    target[..., 3, 3] = 1
    skill = FractionsSkill(255, (100,), leads=1, windows=(1, 2, 3))
    skill.update(target.roll(1, -1)[:, None], target)
    assert skill.compute()["fss_per_threshold_scale"] == [pytest.approx([0, 2 * 2 / 8, 2 * 6 / 18])]


def test_thresholds_between_whole_numbers_are_compared_as_they_are():
    frames = torch.tensor([2.0, 2.4, 2.5, 2.6]).view(1, 1, 1, 1, 2, 2) / 200
    scores = CategoricalScores(200, (2.5,), leads=1, pools=())
    scores.update(frames, frames[:, 0])
    assert scores.compute()["counts"]["hits"] == [[2]]


def test_tall_frames_overflow_no_counter():
    ones = torch.ones(1, 1, 1, 1, 599, 3)
    scores = CategoricalScores(255, (255,), leads=1, pools=(4,))
    scores.update(ones, ones[:, 0])
    assert scores.compute()["counts"]["hits"] == [[1797]]


def test_lpips_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match="pip install lpips"):
        load_lpips()


def test_lpips_is_averaged_over_members_and_frames_without_gaps():
    def network(x, y):
        assert x.shape == y.shape == (4, 3, 8, 8)
        return (x - y).abs().mean(dim=(1, 2, 3), keepdim=True)

    forecast, target = torch.rand(2, 3, 2, 1, 8, 8), torch.rand(2, 2, 1, 8, 8)
    target[0, 0, 0, 0, 0] = torch.nan
    distance = PerceptualDistance(2, network)
    distance.update(forecast, target)
    expected = 2 * (forecast - target[:, None]).abs().mean(dim=(1, 3, 4, 5))
    assert distance.compute()["lpips_per_lead"] == pytest.approx([expected[1, 0].item(), expected[:, 1].mean().item()])


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
