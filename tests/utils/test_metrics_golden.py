"""The scores reproduce those of the evaluation codes of the field (tests/golden/metrics_*.npz)."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from utils.metrics import FractionsSkill, Scores, ensemble_mean
from utils.metrics.categorical import Contingency
from utils.metrics.spectrum import radial_spectrum

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
    absolute = 2e-7 if name == "ssim" else 1e-12  # of 1; one case scores 0.02
    assert_allclose(scores[name], expected[f"official_{name}"], rtol=1e-6, atol=absolute)
    assert_allclose(scores[f"{name}_per_lead"], expected[f"official_{name}_lead"], rtol=1e-6, atol=absolute)


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
        assert_allclose(scores[key], golden[key], rtol=1e-6)
        assert_allclose(scores[f"{key}_per_lead"], golden[f"{key}_lead"], rtol=1e-6)


@pytest.mark.parametrize("name", ["ensemble", "ensemble_ties"])
def test_members_are_pooled_and_their_mean_scored_beside(name):
    golden = load(name)
    scores = score(golden["forecast"], golden["target"]).compute()
    for computed, suffix in ((scores, "csi_pooled_members"), (scores["ensemble_mean"], "csi_of_mean")):
        for ours, theirs in (("csi", "official"), ("csi_total", "sevir")):
            assert_allclose(computed[ours], golden[f"{theirs}_{suffix}"], rtol=0, atol=1e-6)
            assert_allclose(computed[f"{ours}_per_threshold"], golden[f"{theirs}_{suffix}_thr"], rtol=0, atol=1e-6)


def skill(forecast, target, windows, thresholds=THRESHOLDS):
    """FSS of fields as `score` takes them."""
    forecast, target = torch.from_numpy(forecast)[..., None, :, :], torch.from_numpy(target)[..., None, :, :]
    scores = FractionsSkill(255, thresholds, target.shape[1], forecast.shape[1], [int(window) for window in windows])
    scores.update(forecast, target)
    return scores.compute()


@pytest.mark.parametrize("name", ["ensemble", "ensemble_ties"])
def test_fractions_skill_matches_pysteps(name):
    golden = load(name)
    forecast, target, windows = golden["forecast"], golden["target"], golden["fss_scales"]
    members, first = skill(forecast, target, windows), skill(forecast[:, :1], target, windows)
    mean = ensemble_mean(torch.from_numpy(forecast), torch.from_numpy(target)).numpy()
    found = {
        "fss_members_mean": members["fss_per_threshold_scale"],
        "fss_probability": members["fss_probability_per_threshold_scale"],
        "fss_member0": first["fss_per_threshold_scale"],
        "fss_member0_lead": np.moveaxis(first["fss_per_threshold_scale_lead"], 2, 0),
        "fss_ensemble_mean": skill(mean, target, windows)["fss_per_threshold_scale"],
    }
    assert members["fss_scales"] == windows.tolist()
    for key, values in found.items():
        assert_allclose(values, golden[key], rtol=0, atol=1e-6, err_msg=key)


def test_fractions_skill_of_empty_and_missing_fields():
    zeros, ones = np.zeros((1, 1, 1, 16, 20), np.float32), np.ones((1, 1, 1, 16, 20), np.float32)
    golden = load("edge")
    cases = {"both_empty": (zeros, zeros), "none_observed": (ones, zeros), "perfect": (ones, ones)}
    for name, (forecast, target) in cases.items():
        found = skill(forecast, target[:, 0], [5], [74])["fss_per_threshold_scale"]
        assert_allclose(found, [[golden[f"fss_{name}"].item()]])
    missing = golden["missing_forecast"][:1, None, :1], golden["missing_target"][:1, :1]
    found = skill(*missing, [5], [74])["fss_per_threshold_scale"]
    assert_allclose(found, [[golden["missing_fss_74_scale5_frame00"].item()]], atol=1e-8)


@pytest.mark.parametrize("name", ["ensemble", "ensemble_ties"])
def test_probabilities_match_the_reference_packages(name):
    golden = load(name)
    scores = score(golden["forecast"], golden["target"])
    computed = scores.compute()
    for key in ("brier", "brier_fair", "roc_area", "reliability_observed_frequency", "reliability_count"):
        assert_allclose(computed[key], golden[key], rtol=1e-9, atol=1e-15, err_msg=key)
    members = golden["forecast"].shape[1]
    reached = [np.bincount(of_one.ravel(), minlength=members + 1) for of_one in golden["exceedance_members"]]
    assert_array_equal(scores.state()["exceedance/table"].sum(dim=(1, 3)), reached)
    assert_allclose(computed["reliability_probability"], np.arange(members + 1) / members)
    for key in ("roc_pod", "roc_pofd"):
        assert_allclose(np.array(computed[key])[:, [0, -1]], [[0, 1]] * len(THRESHOLDS))


@pytest.mark.parametrize("name", ["ensemble", "ensemble_ties"])
def test_rank_histograms_match_the_reference_packages(name):
    golden = load(name)
    computed = score(golden["forecast"], golden["target"]).compute()
    assert_allclose(np.array(computed["rank_histogram"]) * golden["target"].size, golden["rank_histogram"], rtol=1e-9)
    assert_allclose(np.mean(computed["rank_histogram_per_lead"], axis=0), computed["rank_histogram"])
    frequency = golden["rank_histogram"] / golden["rank_histogram"].sum()
    assert_allclose(computed["rank_deviation"], np.abs(frequency - 1 / len(frequency)).sum(), rtol=1e-9)


def test_spectra_match_pysteps():
    golden = load("ensemble")
    computed = score(golden["forecast"], golden["target"]).compute()
    assert_allclose(computed["spectrum_frequency"], golden["rapsd_frequency"])
    assert_allclose(computed["spectrum"], golden["rapsd_members"], rtol=1e-9)
    assert_allclose(computed["spectrum_target"], golden["rapsd_target"], rtol=1e-9)
    assert_allclose(np.mean(computed["spectrum_target_per_lead"], axis=0), golden["rapsd_target"], rtol=1e-9)
    # our mean is rounded to float32, which shows where there is next to no power
    assert_allclose(computed["ensemble_mean"]["spectrum"], golden["rapsd_ensemble_mean"], rtol=1e-5)
    for frames, frame in (("ensemble", golden), ("frames_odd", load("frames_odd"))):
        spectrum = radial_spectrum(torch.from_numpy(frame["target"][0, 0]))
        assert_allclose(spectrum, frame["rapsd_target_0_0"], rtol=1e-9, err_msg=frames)
    constant = radial_spectrum(torch.full((16, 20), 0.5))
    assert_allclose(constant, load("edge")["rapsd_constant"], atol=1e-12)


def test_degenerate_ensembles():
    golden = load("edge")
    forecast, target = golden["ens_forecast"], golden["ens_target"]
    single = score(forecast[:, :1], target).compute()
    assert_allclose(single["crps"], golden["ens_single_crps"], rtol=1e-6)
    assert_allclose(single["skill"], golden["ens_single_skill"], rtol=1e-6)
    assert np.isnan([single["crps_fair"], single["spread"], single["spread_skill_ratio"]]).all()
    identical = score(forecast[:, :1].repeat(4, axis=1), target).compute()
    constant = score(np.full_like(forecast, 0.25), np.full_like(target, 0.25)).compute()
    for name, computed in (("identical", identical), ("constant", constant)):
        for key in ("crps", "crps_fair", "spread"):
            expected = golden.get(f"ens_{name}_{key}", 0)  # there is none for the spread of a constant
            assert_allclose(computed[key], expected, rtol=1e-6, atol=1e-12)
        ranks = np.array(computed["rank_histogram"]) * target.size
        assert_allclose(ranks, golden[f"ens_{name}_rank_histogram"], atol=1e-9)
    unobserved = score(forecast, np.zeros_like(target)).compute()
    for key in ("roc_area", "brier", "reliability_observed_frequency", "reliability_count"):
        suffix = "" if key == "roc_area" else "_74"
        assert_allclose(unobserved[key][1], golden[f"ens_no_event_{key}{suffix}"], rtol=1e-9, err_msg=key)
    dry = score(np.zeros_like(forecast), np.zeros_like(target)).compute()
    assert np.isnan(dry["rank_histogram_wet"]).all()


def test_a_pixel_missing_in_one_member_is_missing_in_all():
    golden = load("edge")
    scores = score(golden["ens_missing_forecast"], golden["ens_missing_target"])
    computed = scores.compute()
    for key in ("crps", "crps_fair", "spread", "skill"):
        assert_allclose(computed[key], golden[f"ens_missing_{key}"], rtol=1e-6)
    assert_allclose(computed["brier"][1], golden["ens_missing_brier_74"], rtol=1e-9)
    valid = golden["ens_missing_valid_pixels"]
    assert_allclose(np.array(computed["rank_histogram"]) * valid, golden["ens_missing_rank_histogram"], rtol=1e-9)
    assert scores.state()["ensemble/pixels"].sum() == valid
    assert scores.state()["categorical/counts"][:, 0].sum() == 4 * valid
    assert scores.state()["ensemble_mean/categorical/counts"][:, 0].sum() == valid
