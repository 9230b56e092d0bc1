"""Each score by itself: what it counts, what it forgives, what it leaves out."""

import math
import sys

import pytest
import torch
from skimage.metrics import structural_similarity
from torch.testing import assert_close

from utils.errors import InputError
from utils.metrics import (
    CategoricalScores,
    EnsembleScores,
    FractionsSkill,
    PerceptualDistance,
    Scores,
    StructuralSimilarity,
    load_lpips,
    probability_matched_mean,
)
from utils.metrics.categorical import Contingency
from utils.metrics.ssim import ssim

THRESHOLDS = (64, 128, 192)
WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # SSIM as published, of scikit-image


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
    expected = structural_similarity(255 * y.numpy(), 255 * x.numpy(), data_range=255, **WANG)
    assert ssim(x[None, None], y[None]).item() == pytest.approx(expected, abs=1e-6)


def test_frames_smaller_than_the_window_have_no_ssim():
    similarity = StructuralSimilarity(leads=1)
    similarity.update(torch.ones(1, 1, 1, 1, 8, 20), torch.ones(1, 1, 1, 8, 20))
    assert math.isnan(similarity.compute()["ssim"])


def test_ssim_is_the_mean_over_the_windows_of_known_pixels():
    x, y = 0.9 + 0.01 * torch.rand(2, 90, 24, generator=torch.Generator().manual_seed(2)).double()
    known = torch.zeros(90, 24, dtype=torch.bool)
    known[66:, 1:], known[75:80, 21] = True, False
    _, similarity = structural_similarity(y.numpy(), x.numpy(), data_range=1, full=True, **WANG)
    complete = [
        similarity[row + 5, column + 5]
        for row in range(80)
        for column in range(14)
        if known[row : row + 11, column : column + 11].all()
    ]
    assert 0 < len(complete) < 14 * 13
    masked = y.masked_fill(~known, torch.nan)
    assert ssim(x[None, None], masked[None]).item() == pytest.approx(sum(complete) / len(complete), abs=1e-6)


def test_gaps_change_ssim_neither_by_what_is_forecast_there_nor_that_of_other_frames():
    forecast, target = torch.rand(3, 2, 16, 20), torch.rand(3, 16, 20)
    whole = ssim(forecast, target)
    target[1, 13:, 15:] = torch.nan
    target[2, 8, :] = torch.nan  # no window of 11 x 11 is left
    missing = target.isnan()[:, None]
    of_garbage = [ssim(torch.where(missing, garbage, forecast), target) for garbage in (0.0, 0.7, torch.nan)]
    assert torch.equal(of_garbage[0][0], whole[0])
    assert of_garbage[0][:2].isfinite().all()
    assert of_garbage[0][2].isnan().all()
    for similarity in of_garbage[1:]:
        assert torch.equal(similarity[:2], of_garbage[0][:2])


def test_frames_with_gaps_are_left_out_of_ssim_without_a_window_and_of_spectrum_only():
    forecast, target = torch.rand(2, 2, 1, 1, 12, 12), torch.rand(2, 1, 1, 12, 12)
    whole, gap = (Scores(255, THRESHOLDS, leads=1, members=2) for _ in range(2))
    whole.update(forecast[:1], target[:1])
    target[1, ..., 5] = torch.nan
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


def test_one_member_is_its_own_probability_matched_mean():
    forecast, target = torch.rand(2, 1, 3, 1, 14, 17), torch.rand(2, 3, 1, 14, 17)
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


def test_a_member_without_events_does_not_undo_the_skill_of_the_others():
    target = torch.zeros(1, 1, 1, 8, 8)
    forecast = torch.zeros(1, 3, 1, 1, 8, 8)
    forecast[:, 1] = 1  # a false alarm; the others rightly forecast nothing, which has no FSS
    skill = FractionsSkill(255, (100, 255), leads=1, members=3, windows=(1,))
    skill.update(forecast, target)
    assert skill.compute()["fss_per_threshold_scale"] == [[0], [0]]


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
