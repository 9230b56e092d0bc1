"""Laws of the state that all scores obey, whatever the data."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from utils.metrics import (
    CategoricalScores,
    ExceedanceScores,
    FrameErrors,
    Scores,
    score,
)

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
            assert name == "missing_forecast" or torch.equal(other[name], sums), name


def test_observed_pixels_without_a_forecast_are_counted(data):
    forecast, target = (field.clone() for field in data)
    forecast[1, :, 2, 0, :4] = torch.nan  # three of the four rows are not observed either
    scores = scored(forecast, target)
    assert scores.state()["missing_forecast"].tolist() == [1, 0, 17]  # once, in however many members
    assert scores.compute()["missing_forecast_pixels"] == 18
    assert scored(forecast.nan_to_num(0), target).compute()["missing_forecast_pixels"] == 0


def test_the_state_does_not_grow_with_the_number_of_sequences(data):
    forecast, target = data
    few, many = (
        scored(forecast[:1], target[:1]),
        scored(forecast.repeat(9, 1, 1, 1, 1, 1), target.repeat(9, 1, 1, 1, 1)),
    )
    sizes = [{name: (sums.shape, sums.dtype) for name, sums in scores.state().items()} for scores in (few, many)]
    assert sizes[0] == sizes[1]


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
    of_ensembles = ("crps", "twcrps", "spread", "skill", "rank", "reliability", "brier", "roc", "fss_prob")
    of_ensembles += ("ensemble_", "pm_", "missing_forecast")
    assert computed["ensemble_mean"].keys() == {key for key in computed if not key.startswith(of_ensembles)}
    assert computed["pm_mean"].keys() == computed["ensemble_mean"].keys()
    single = Scores(255, THRESHOLDS, LEADS, pools=(4,))
    single.update(data[0][:, :1], data[1])
    assert single.compute().keys() == computed["pm_mean"].keys() | {
        key for key in computed if key.startswith(("crps", "twcrps", "spread", "skill", "missing_forecast"))
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


def test_brier_score_and_roc_area_by_lead_time_are_those_of_the_lead_times(data):
    forecast, target = data
    computed = scored(forecast, target).compute()
    for lead in range(LEADS):
        alone = ExceedanceScores(255, THRESHOLDS, 1, MEMBERS)
        alone.update(forecast[:, :, lead : lead + 1], target[:, lead : lead + 1])
        for name in ("brier", "roc_area"):
            found = [of_one[lead] for of_one in computed[f"{name}_per_threshold_lead"]]
            assert found == pytest.approx(alone.compute()[name], rel=1e-12)


def test_warnings_are_counted_as_numpy_counts_them(data):
    scores = scored(*data)
    forecast, target = (255 * array.numpy()[..., 0, :, :] for array in data)
    valid = np.isfinite(target) & np.isfinite(forecast).all(axis=1)
    best = []
    for k, threshold in enumerate(THRESHOLDS):
        by_number = []
        for needed in range(1, MEMBERS + 1):
            warned = (forecast >= threshold).sum(axis=1) >= needed
            hits, either = warned & (target >= threshold), warned | (target >= threshold)
            hits, either = ((mask & valid).sum(axis=(0, 2, 3)) for mask in (hits, either))
            found = scores.warnings([needed] * len(THRESHOLDS))
            assert found["csi_warning_per_threshold_lead"][k] == pytest.approx(hits / either)
            assert found["csi_warning_total_per_threshold"][k] == pytest.approx(hits.sum() / either.sum())
            assert found["warning_probability"][k] == needed / MEMBERS
            by_number.append((hits / either).mean())
        best.append(1 + int(np.argmax(by_number)))
    assert scores.parts["exceedance"].best_warnings() == best
    each = [scores.warnings([needed] * 3)["csi_warning_per_threshold"] for needed in range(1, MEMBERS + 1)]
    assert scores.warnings([2, 4, 1])["csi_warning_per_threshold"] == [each[1][0], each[3][1], each[0][2]]


def test_warnings_of_one_member_are_its_events(data):
    single = Scores(255, THRESHOLDS, LEADS, pools=(4,))
    single.update(data[0][:, :1], data[1])
    warnings, events = single.warnings([1, 1, 1]), single.compute()
    assert warnings.pop("warning_probability") == [1, 1, 1]
    assert warnings == {name: events[name.replace("_warning", "")] for name in warnings}


def test_a_threshold_that_nothing_reaches_needs_one_member():
    scores = ExceedanceScores(255, THRESHOLDS, LEADS, MEMBERS)
    scores.update(torch.full((1, MEMBERS, LEADS, 1, 4, 4), 0.3), torch.full((1, LEADS, 1, 4, 4), 0.3))
    assert scores.best_warnings() == [1, 1, 1]
