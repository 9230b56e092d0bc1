"""Scores of frames on a logarithmic scale are those of the rain rates that they stand for."""

from dataclasses import replace

import numpy as np
import pytest
import scoringrules
import torch
from numpy.testing import assert_allclose

from dataset.source import FINE_LEVELS, VIL
from dataset.transform import dbz
from utils.metrics import Scores

LINEAR = replace(VIL, scale=60.0, units="mm/h", thresholds=(0.5, 2.0, 10.0))
CURVED = replace(LINEAR, transform=dbz("mm/h", 5))
MEMBERS = 5


@pytest.fixture(scope="module")
def rain():
    """Rain rates in mm/h of members `(N, M, T, C, H, W)` and target `(N, T, C, H, W)`, some of which are missing."""
    random = np.random.default_rng(3)
    target = random.gamma(0.4, 6, (2, 3, 1, 24, 20)).astype(np.float32)
    members = 0.5 * target[:, None] + random.gamma(0.4, 3, (2, MEMBERS, 3, 1, 24, 20)).astype(np.float32)
    target[target < 0.1] = 0
    target[0, 1, 0, :4] = np.nan
    members[1, 2, 2, 0, 5, 6] = np.nan
    return members.clip(0, 60), target.clip(0, 60)


def scored(source, members, target):
    scores = Scores.of(source, 3, members.shape[1])
    scores.update(*(source.to_frames(torch.from_numpy(field)) for field in (members, target)))
    return scores.compute()


def flat(value, name=""):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    return (
        {name: value} if items is None else {k: v for key, one in items for k, v in flat(one, f"{name}/{key}").items()}
    )


def test_every_score_is_that_of_the_rates(rain):
    on_rates, on_curve = (flat(scored(source, *rain)) for source in (LINEAR, CURVED))
    assert on_rates.keys() == on_curve.keys()
    assert len(on_rates) > 500
    for name, value in on_rates.items():
        assert on_curve[name] == pytest.approx(value, rel=2e-4, abs=1e-6, nan_ok=True), name


def test_scores_agree_with_other_libraries_on_rates(rain):
    members, target = rain
    found = scored(CURVED, members, target)
    valid = np.isfinite(target) & np.isfinite(members.sum(axis=1))
    ensemble, observed = np.moveaxis(members, 1, -1)[valid], target[valid]
    crps = scoringrules.crps_ensemble(observed, ensemble, estimator="nrg").mean()
    assert_allclose(60 * found["crps"], crps, rtol=1e-4)
    assert_allclose(60 * found["spread"], np.sqrt(ensemble.var(axis=-1, ddof=1).mean()), rtol=1e-4)
    assert_allclose(60 * found["skill"], np.sqrt(((ensemble.mean(axis=-1) - observed) ** 2).mean()), rtol=1e-4)
    error = np.where(valid, members.mean(axis=1) - target, np.nan)
    frames = np.nanmean(error**2, axis=(-2, -1)), np.nanmean(np.abs(error), axis=(-2, -1))
    assert_allclose(found["ensemble_mean"]["mse"], frames[0].mean(), rtol=1e-4)
    assert_allclose(found["ensemble_mean"]["mae"], frames[1].mean(), rtol=1e-4)
    for k, threshold in enumerate(CURVED.thresholds):
        probability, event = (ensemble >= threshold).mean(axis=-1), (observed >= threshold).astype(float)
        assert_allclose(found["brier"][k], scoringrules.brier_score(event, probability).mean(), rtol=1e-6)
        hits = ((ensemble >= threshold) & (event == 1)[:, None]).sum()
        either = ((ensemble >= threshold) | (event == 1)[:, None]).sum()
        assert_allclose(found["csi_total_per_threshold"][k], hits / either, rtol=1e-6)


def test_a_rate_just_at_a_threshold_counts_as_an_event():
    rates = np.float32(CURVED.thresholds).reshape(1, 1, 1, 1, 1, 3).repeat(3, axis=2)
    levels = np.rint(FINE_LEVELS * CURVED.to_frames(rates)).astype(np.float32) / np.float32(FINE_LEVELS)
    scores = Scores.of(CURVED, 3)
    scores.update(torch.from_numpy(levels), torch.from_numpy(levels[0]))
    assert scores.compute()["counts"]["hits"] == [[3] * 3, [2] * 3, [1] * 3]
