"""The scores reproduce those of the evaluation codes of the field (tests/golden/metrics_*.npz)."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from utils.metrics import Scores
from utils.metrics.categorical import Contingency

GOLDEN = Path(__file__).parents[1] / "golden"
THRESHOLDS = (16, 74, 133, 160, 181, 219)
EDGE_CASES = (
    "no_event_observed",
    "no_event_forecast",
    "both_empty",
    "perfect",
    "constant",
    "saturated",
    "out_of_range",
    "exact_bytes",
)
SEVIR_BENCHMARK = {  # our names, and those of the golden values, not all of which exist in every case
    "csi_total": "sevir_csi",
    "csi_total_per_threshold": "sevir_csi_thr",
    "pod_total": "sevir_pod",
    "pod_total_per_threshold": "sevir_pod_thr",
    "hss_total": "cascast_hss",
    "hss_total_per_threshold": "cascast_hss_thr",
    "bias_total_per_threshold": "sevir_frequency_bias_thr",
    "csi_per_lead": "sevir_mode1_csi_lead",
    "csi_per_threshold_lead": "sevir_mode1_csi_thr_lead",
    "csi": "sevir_mode2_csi",
    "csi_per_threshold": "sevir_mode2_csi_thr",
}
CASES = [("frames", ""), ("frames_odd", ""), *(("edge", f"{case}_") for case in EDGE_CASES)]


@cache
def load(name):
    return dict(np.load(GOLDEN / f"metrics_{name}.npz"))


def score(forecast, target):
    """Score fields `(N, T, H, W)`, or an ensemble `(N, M, T, H, W)`, of targets `(N, T, H, W)`."""
    forecast, target = torch.from_numpy(forecast), torch.from_numpy(target)
    if forecast.ndim == 4:
        forecast = forecast[:, None]
    scores = Scores(255, THRESHOLDS, leads=target.shape[1], members=forecast.shape[1])
    scores.update(forecast[:, :, :, None], target[:, :, None])
    return scores


@pytest.fixture(scope="module", params=CASES, ids=["frames", "frames_odd", *EDGE_CASES])
def case(request):
    """Return the expected values of a deterministic forecast, our scores and their state."""
    name, prefix = request.param
    expected = {key.removeprefix(prefix): value for key, value in load(name).items() if key.startswith(prefix)}
    scores = score(expected["forecast"], expected["target"])
    return expected, scores.compute(), scores.state()


def test_counts_are_exact(case):
    expected, scores, state = case
    for index, name in enumerate(Contingency._fields):
        assert_array_equal(scores["counts"][name], expected[f"counts_{name}"])
        for pool in (4, 16):
            if name != "correct_negatives":  # theirs count blocks beyond the frame
                pooled = state[f"categorical/counts_pool{pool}"][index].sum(dim=1)
                assert_array_equal(pooled, expected[f"official_pool{pool}_counts_{name}"])


@pytest.mark.parametrize("name", ["csi", "pod", "far", "hss"])
def test_lead_time_means_match_diffcast(case, name):
    expected, scores, _ = case
    for ours, theirs in {"": "", "_per_threshold": "_thr", "_per_threshold_lead": "_lead"}.items():
        assert_allclose(scores[name + ours], expected[f"official_{name}{theirs}"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["csi_pool4", "csi_pool16"])
def test_pooled_csi_matches_diffcast(case, name):
    expected, scores, _ = case
    assert_allclose(scores[name], expected[f"official_{name}"], rtol=1e-6)
    assert_allclose(scores[f"{name}_per_threshold"], expected[f"official_{name}_thr"], rtol=1e-6)


def test_totals_match_the_sevir_benchmark(case):
    expected, scores, _ = case
    for ours, theirs in SEVIR_BENCHMARK.items():
        if theirs in expected:
            assert_allclose(scores[ours], expected[theirs], rtol=0, atol=1e-6, err_msg=ours)


@pytest.mark.parametrize("name", ["csi", "pod", "far", "hss", "bias"])
def test_undefined_ratios_are_nan(case, name):
    expected, scores, state = case
    ratio = getattr(Contingency(*state["categorical/counts"]), name)()
    assert scores[f"{name}_empty_cells"] == (~ratio.isfinite()).sum()
    if f"plain_{name}_lead" in expected:
        assert_allclose(ratio, expected[f"plain_{name}_lead"], rtol=1e-12)


@pytest.mark.parametrize("name", ["mse", "mae", "rmse", "psnr", "ssim"])
def test_errors_match_diffcast(case, name):
    expected, scores, _ = case
    assert_allclose(scores[name], expected[f"official_{name}"], rtol=1e-6, atol=1e-12)
    assert_allclose(scores[f"{name}_per_lead"], expected[f"official_{name}_lead"], rtol=1e-6, atol=1e-12)


def test_crps_of_one_member_is_the_mean_absolute_error(case):
    _, scores, _ = case
    assert_allclose(255 * scores["crps"], scores["mae"], rtol=1e-6, atol=1e-12)


def test_missing_pixels_count_nowhere():
    golden = load("edge")
    scores = score(golden["missing_forecast"], golden["missing_target"])
    computed = scores.compute()
    for name in Contingency._fields:
        assert_array_equal(computed["counts"][name], golden[f"missing_counts_{name}"])
    for name in ("mse", "mae"):
        assert_allclose(computed[f"{name}_per_lead"], golden[f"missing_{name}_lead"], rtol=1e-6)
    assert_array_equal(scores.state()["ensemble/pixels"], golden["missing_valid_pixels_lead"])


@pytest.mark.parametrize("name", ["ensemble", "ensemble_ties"])
def test_ensemble_scores_match_the_reference_packages(name):
    golden = load(name)
    scores = score(golden["forecast"], golden["target"]).compute()
    for key in ("crps", "crps_fair", "spread", "skill", "spread_skill_ratio"):
        assert_allclose(scores[key], golden[key], rtol=1e-9)
        assert_allclose(scores[f"{key}_per_lead"], golden[f"{key}_lead"], rtol=1e-9)


@pytest.mark.parametrize("name", ["ensemble", "ensemble_ties"])
def test_members_are_pooled_and_their_mean_scored_beside(name):
    golden = load(name)
    scores = score(golden["forecast"], golden["target"]).compute()
    for computed, suffix in ((scores, "csi_pooled_members"), (scores["ensemble_mean"], "csi_of_mean")):
        for ours, theirs in (("csi", "official"), ("csi_total", "sevir")):
            assert_allclose(computed[ours], golden[f"{theirs}_{suffix}"], rtol=0, atol=1e-6)
            assert_allclose(computed[f"{ours}_per_threshold"], golden[f"{theirs}_{suffix}_thr"], rtol=0, atol=1e-6)


def test_degenerate_ensembles():
    golden = load("edge")
    forecast, target = golden["ens_forecast"], golden["ens_target"]
    single = score(forecast[:, :1], target).compute()
    assert_allclose(single["crps"], golden["ens_single_crps"], rtol=1e-9)
    assert_allclose(single["skill"], golden["ens_single_skill"], rtol=1e-9)
    assert np.isnan([single["crps_fair"], single["spread"], single["spread_skill_ratio"]]).all()
    identical = score(forecast[:, :1].repeat(4, axis=1), target).compute()
    for key in ("crps", "crps_fair", "spread"):
        assert_allclose(identical[key], golden[f"ens_identical_{key}"], rtol=1e-9, atol=1e-12)


def test_a_pixel_missing_in_one_member_is_missing_in_all():
    golden = load("edge")
    scores = score(golden["ens_missing_forecast"], golden["ens_missing_target"])
    computed = scores.compute()
    for key in ("crps", "crps_fair", "spread", "skill"):
        assert_allclose(computed[key], golden[f"ens_missing_{key}"], rtol=1e-9)
    valid = golden["ens_missing_valid_pixels"]
    assert scores.state()["ensemble/pixels"].sum() == valid
    assert scores.state()["categorical/counts"][:, 0].sum() == 4 * valid
    assert scores.state()["ensemble_mean/categorical/counts"][:, 0].sum() == valid
