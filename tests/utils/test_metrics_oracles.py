"""The scores agree with independent implementations of other people, on random ensembles and at the edges."""

import os
from pathlib import Path

import numpy as np
import properscoring
import pytest
import scoringrules
import torch
from numpy.testing import assert_allclose
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.stats import mannwhitneyu, rankdata

from utils.metrics import FractionsSkill, Scores

THRESHOLDS = (64, 128, 192)


def ensemble(case):
    """Members `(N, M, T, C, H, W)` and target `(N, T, C, H, W)` of a kind."""
    random = np.random.default_rng(5)
    target = random.random((2, 2, 1, 12, 13), dtype=np.float32)
    forecast = (0.6 * target[:, None] + 0.5 * random.random((2, 6, *target.shape[1:]), dtype=np.float32)).clip(0, 1)
    if case == "ties":
        forecast, target = (np.float32(np.floor(5 * field) / 5) for field in (forecast, target))
    elif case == "no event":
        forecast, target = forecast / 5, target / 5
    elif case == "all event":
        forecast, target = 0.8 + forecast / 5, 0.8 + target / 5
    elif case == "constant":
        forecast, target = np.full_like(forecast, 0.5), np.full_like(target, 0.3)
    elif case == "one member":
        forecast = forecast[:, :1]
    elif case == "missing":
        target[0, 0, 0, :3] = np.nan
        forecast[1, 2, 1, 0, 4] = np.nan
    return forecast, target


@pytest.fixture(params=["random", "ties", "no event", "all event", "constant", "one member", "missing"])
def case(request):
    """Return our scores, and members `(M, P)` and observation `(P,)` at the valid pixels."""
    forecast, target = ensemble(request.param)
    scores = Scores(255, THRESHOLDS, leads=2, members=forecast.shape[1])
    scores.update(torch.from_numpy(forecast), torch.from_numpy(target))
    members, observed = np.moveaxis(forecast, 1, 0).reshape(forecast.shape[1], -1), target.ravel()
    valid = np.isfinite(members.sum(axis=0) + observed)
    return scores.compute(), members[:, valid].astype(np.float64), observed[valid].astype(np.float64)


def test_crps(case):
    scores, members, observed = case
    assert_allclose(scores["crps"], properscoring.crps_ensemble(observed, members.T).mean(), rtol=1e-6)
    assert_allclose(scores["crps"], scoringrules.crps_ensemble(observed, members.T, estimator="nrg").mean(), rtol=1e-6)
    if len(members) > 1:
        fair = scoringrules.crps_ensemble(observed, members.T, estimator="fair").mean()
        assert_allclose(scores["crps_fair"], fair, rtol=1e-6)


def test_threshold_weighted_crps(case):
    scores, members, observed = case
    for k, threshold in enumerate(THRESHOLDS):
        expected = scoringrules.twcrps_ensemble(observed, members.T, a=threshold / 255, estimator="nrg")
        assert_allclose(scores["twcrps"][k], expected.mean(), rtol=1e-5, atol=1e-9)


def test_brier_score(case):
    scores, members, observed = case
    if len(members) == 1:
        pytest.skip("one member gives no probabilities")
    levels = 255 * np.float32(members), 255 * np.float32(observed)
    for k, threshold in enumerate(THRESHOLDS):
        probability, event = (levels[0] >= threshold).mean(axis=0), (levels[1] >= threshold).astype(float)
        assert_allclose(scores["brier"][k], scoringrules.brier_score(event, probability).mean(), rtol=1e-9)
        # properscoring takes strict exceedance
        expected = properscoring.threshold_brier_score(levels[1], levels[0].T, np.nextafter(np.float32(threshold), 0))
        assert_allclose(scores["brier"][k], expected.mean(), rtol=1e-9)
        # the fair Brier score is the fair CRPS of the events
        fair = scoringrules.crps_ensemble(event, (levels[0] >= threshold).T.astype(float), estimator="fair").mean()
        assert_allclose(scores["brier_fair"][k], fair, rtol=1e-9, atol=1e-15)


def test_roc_area_is_the_mann_whitney_statistic(case):
    scores, members, observed = case
    if len(members) == 1:
        pytest.skip("one member gives no probabilities")
    for k, threshold in enumerate(THRESHOLDS):
        probability, event = (
            (255 * np.float32(members) >= threshold).mean(axis=0),
            255 * np.float32(observed) >= threshold,
        )
        if event.all() or not event.any():
            assert np.isnan(scores["roc_area"][k])
        else:
            statistic = mannwhitneyu(probability[event], probability[~event]).statistic
            assert_allclose(scores["roc_area"][k], statistic / event.sum() / (~event).sum(), rtol=1e-9)


def test_rank_histogram_is_the_expectation_over_ties(case):
    scores, members, observed = case
    if len(members) == 1:
        pytest.skip("one member has no rank histogram")
    every = np.concatenate([observed[None], members])
    low, high = (rankdata(every, method, axis=0)[0].astype(int) for method in ("min", "max"))
    wet = 255 * every.max(axis=0) >= THRESHOLDS[0]
    for name, chosen in (("rank_histogram", wet | True), ("rank_histogram_wet", wet)):
        pairs = zip(low[chosen], high[chosen], strict=True)
        expected = sum(np.isin(np.arange(1, len(every) + 1), np.arange(a, b + 1)) / (b - a + 1) for a, b in pairs)
        assert_allclose(scores[name], expected / chosen.sum() if chosen.any() else [np.nan] * len(every), rtol=1e-9)


@pytest.mark.parametrize("window", [1, 4, 7])
def test_fractions_are_uniform_filters(window):
    forecast, target = ensemble("random")
    skill = FractionsSkill(255, THRESHOLDS, leads=2, windows=[window])
    skill.update(torch.from_numpy(forecast[:, :1]), torch.from_numpy(target))
    size = (1,) * (target.ndim - 2) + (window, window)
    for k, threshold in enumerate(THRESHOLDS):
        x, y = (
            uniform_filter((255 * field >= threshold).astype(float), size, mode="constant")
            for field in (forecast[:, 0], target)
        )
        expected = 1 - ((x - y) ** 2).sum() / (x**2 + y**2).sum()
        assert_allclose(skill.compute()["fss_per_threshold_scale"][k], [expected], atol=1e-9)


@pytest.mark.skipif(
    "DIFFCAST_SEVIR_DEMOS" not in os.environ,
    reason="set DIFFCAST_SEVIR_DEMOS to a folder with demo_0 and demo_1 (inputs/*.png, targets/*.png: grey, a byte per "
    "pixel), official_forecasts.npz and reference_scores.npz of DiffCast's own evaluation",
)
@pytest.mark.parametrize("name", ["persistence", "phydnet", "diffcast"])
def test_official_forecasts_of_real_sequences(name):
    folder = Path(os.environ["DIFFCAST_SEVIR_DEMOS"])
    target = np.stack([_frames(folder / f"demo_{i}/targets") for i in (0, 1)])
    if name == "persistence":
        forecast = np.stack([_frames(folder / f"demo_{i}/inputs")[-1:].repeat(20, axis=0) for i in (0, 1)])
    else:
        published = np.load(folder / "official_forecasts.npz")
        forecast = np.stack([published[f"demo_{i}_{name}"] for i in (0, 1)])
    forecast, target = (torch.from_numpy(np.float32(frames) / 255)[:, :, None] for frames in (forecast, target))
    scores = Scores(255, (16, 74, 133, 160, 181, 219), leads=20)
    scores.update(forecast[:, None], target)
    computed = scores.compute()
    expected = dict(np.load(folder / "reference_scores.npz"))
    compared = 0
    for ours, theirs, tolerance in _names(name == "persistence"):
        key = f"{name}__{theirs}"
        if key in expected:
            assert_allclose(computed[ours], expected[key], rtol=tolerance, atol=1e-6, err_msg=key)
            compared += 1
    assert compared >= 15


def _names(exact):
    """Names of ours and of the reference, and a tolerance; only categorical scores are exact for coloured forecasts."""
    for score in ("csi", "pod", "far", "hss"):
        yield from ((score, f"official_{score}", 1e-6), (f"{score}_per_threshold", f"official_{score}_thr", 1e-6))
        yield f"{score}_per_threshold_lead", f"official_{score}_lead", 1e-6
    for pool in (4, 16):
        yield f"csi_pool{pool}", f"official_csi_pool{pool}", 1e-6
        yield f"csi_pool{pool}_per_threshold", f"official_csi_pool{pool}_thr", 1e-6
    # the benchmark adds 1e-4 to its denominators, which shows for a threshold that seven pixels reach
    yield from (("csi_total", "sevir_csi", 1e-5), ("csi_total_per_threshold", "sevir_csi_thr", 1e-5))
    yield from (("hss_total", "cascast_hss", 1e-5), ("bias_total_per_threshold", "sevir_frequency_bias_thr", 1e-5))
    for score in ("mse", "mae", "rmse", "psnr", "ssim") if exact else ():
        yield from ((score, f"official_{score}", 1e-6), (f"{score}_per_lead", f"official_{score}_lead", 1e-6))


def _frames(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])
