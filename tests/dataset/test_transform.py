"""Rain rates that networks see on a logarithmic scale, and everybody else in the user's units."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from dataset.frames.complete import complete_config
from dataset.source import FINE_LEVELS, VIL
from dataset.transform import TRANSFORMS
from dataset.units import rain_rate
from diffcast.evaluation.results import data_differences, describe_source
from diffcast.forecasting.pictures import style_of
from models import build_backbone
from tests.dataset.archive import Archive
from utils.errors import InputError
from utils.visualize import render

RATES = np.float32([[0, 0.05, 0.1, 0.5], [1, 10, 60, np.nan]])  # mm/h
RAIN = {"units": "mm/h", "range": [0, 60], "thresholds": [0.1, 0.5, 1, 2, 5, 10, 30]}


def rainy(folder, frame=RATES, **changes) -> Archive:
    folder.mkdir(exist_ok=True)
    archive = Archive(folder).configure(**RAIN | changes)
    for number in range(4):
        archive.store(number, frame)
    return archive


def opened(archive, size=(2, 4)):
    dataset = archive.open(img_size=size)
    return dataset[0][0, 0].numpy(), dataset.source


@pytest.mark.parametrize(
    ("transform", "a", "b"),
    [("dbz", 200, 1.6), ({"dbz": [316, 1.5]}, 316, 1.5), ("log", 10, 1), ({"log": 0.02}, 50, 1)],
)
def test_networks_see_the_logarithm_and_users_their_units(tmp_path, transform, a, b):
    frames, source = opened(rainy(tmp_path, transform=transform))
    expected = np.log1p(a * RATES.astype(float) ** b) / np.log1p(a * 60.0**b)
    np.testing.assert_allclose(frames, expected, atol=1 / 65535)
    np.testing.assert_allclose(source.in_units(frames), RATES, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(source.to_frames(source.in_units(torch.tensor(frames))), frames, atol=1e-5)
    assert source.in_units(frames)[0, 0] == 0


def test_dbz_is_the_reflectivity_of_rain(tmp_path):
    frames, source = opened(rainy(tmp_path, transform="dbz"))
    reflectivity = 10 * np.log10(200 * RATES[1, :3].astype(float) ** 1.6)  # 23, 39 and 51.5 dBZ
    np.testing.assert_allclose(frames[1, :3] * 10 * np.log10(1 + 200 * 60**1.6), reflectivity, atol=0.03)
    assert (source.offset, source.scale, source.thresholds[0]) == (0, 60, 0.1)


def test_a_depth_counts_as_the_rain_of_an_interval(tmp_path):
    rates, _ = opened(rainy(tmp_path / "rates", transform="dbz"))
    depths, source = opened(
        rainy(tmp_path / "depths", RATES / 12, transform="dbz", units="mm", range=[0, 5], thresholds=[0.1, 1])
    )
    np.testing.assert_allclose(depths, rates, atol=2 / 65535)
    np.testing.assert_allclose(source.in_units(depths), RATES / 12, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("units", "rate"),
    [("mm/h", 1), ("kg m-2 s-1", 3600), ("m s-1", 3.6e6), ("mm", 6), ("kg m-2", 6), ("cm/h", 10)]
    + [(units, None) for units in ("dBZ", "VIL byte", "h", "mm2/h", "mm mm", "kg m-2 s-2", "1", "mm/5min")],
)
def test_units_of_rain_are_told_from_others(units, rate):
    assert rain_rate(units, interval=10) == (rate and pytest.approx(rate))


@pytest.mark.parametrize(
    "changes", [{"transform": "dbz"}, {"transform": "log"}, {"transform": "dbz", "range": [0.1, 60]}]
)
def test_a_value_just_at_a_threshold_reaches_it(tmp_path, changes):
    thresholds = RAIN["thresholds"] if changes.get("range", [0])[0] == 0 else RAIN["thresholds"][1:]
    just = np.float32(thresholds)
    archive = rainy(tmp_path, np.stack([just, 0.999 * just]), **changes | {"thresholds": thresholds})
    frames, source = opened(archive, (2, len(just)))
    reached = source.scale * torch.tensor(frames) >= torch.tensor(source.steps)
    assert reached.tolist() == [[True] * len(just), [False] * len(just)]


def test_shrinking_keeps_the_amount_of_rain(tmp_path):
    fine = np.random.default_rng(0).gamma(0.3, 8, (32, 32)).astype(np.float32).clip(0, 60)
    frames, source = opened(rainy(tmp_path, fine, transform="dbz"), (16, 16))
    assert source.in_units(frames)[2:-2, 2:-2].mean() == pytest.approx(fine[4:-4, 4:-4].mean(), rel=0.02)


def test_a_cache_of_another_scale_is_made_anew(tmp_path):
    archive, found = rainy(tmp_path), {}
    for transform in (None, "dbz", "log", None):
        frames, source = opened(archive.configure(**RAIN, transform=transform))
        np.testing.assert_allclose(source.in_units(frames), RATES, rtol=2e-3, atol=1e-3)
        found[transform] = frames[1, 0]
    assert found["dbz"] > found["log"] > 10 * found[None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": "dBZ"}, "frames.yaml: transform dbz needs rain in units such as mm/h or mm, not in dBZ; leave"),
        ({"range": [-10, 60]}, "range must begin at 0 or above for the logarithm of transform, not at -10"),
        ({"transform": "sqrt"}, r"transform must be dbz, log, \{dbz: \[a, b\]\} or \{log: unit\}, .* not 'sqrt'"),
        ({"transform": {"dbz": [200]}}, "transform must be dbz, log"),
        ({"transform": {"log": 0}}, "transform must be dbz, log"),
        ({"transform": ["dbz"]}, "transform must be dbz, log"),
        ({"transform": {"dbz": [200, 1.6], "log": 1}}, "transform must be dbz, log"),
    ],
)
def test_impossible_transforms_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        complete_config(rainy(tmp_path, **{"transform": "dbz"} | changes).folder)


def curved(transform="dbz", **changes):
    bounds = (0, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 60)
    source = replace(VIL, scale=60.0, units="mm/h", thresholds=(0.5, 1, 5), bounds=bounds, **changes)
    return replace(source, transform=transform and TRANSFORMS[transform]("mm/h", 5))


def test_colours_change_at_the_bounds_in_units():
    source = curved()
    values = np.array([0, 0.05, 0.1, 0.4, 0.5, 1, 4.9, 5, 25, 39, 40, 60])
    levels = np.rint(FINE_LEVELS * source.to_frames(values)).astype(np.float32) / np.float32(FINE_LEVELS)
    expected = np.searchsorted(source.bounds[1:-1], values, side="right")
    style = style_of(source)
    assert render(levels, style).tolist() == style.rgb[expected].tolist()


def test_default_bounds_are_equal_steps_of_the_logarithm(tmp_path):
    _, source = opened(rainy(tmp_path, transform="dbz"))
    assert (source.bounds[0], source.bounds[1], source.bounds[-1]) == (0, 0.1, 60)
    steps = np.diff(np.log1p(200 * np.array(source.bounds[1:]) ** 1.6))
    np.testing.assert_allclose(steps, steps.mean(), atol=0.15)  # two digits are kept


def test_default_bounds_rise_where_two_digits_would_not(tmp_path):
    archive = rainy(tmp_path, transform="dbz", thresholds=[59.9])
    bounds = complete_config(archive.folder).source(widening=1).bounds
    assert all(low < high for low, high in pairwise(bounds))


def test_weights_of_another_transform_are_refused():
    model = build_backbone("persistence", (1, 8, 8), 2, 3)
    dbz, log, linear = (describe_source(curved(transform), model) for transform in ("dbz", "log", None))
    old = {key: value for key, value in linear.items() if key != "transform"}
    assert data_differences(dbz, dbz) == data_differences(old, linear) == data_differences(None, dbz) == []
    for trained, found in ((dbz, log), (dbz, linear), (linear, log), (old, dbz)):
        (difference,) = data_differences(trained, found)
        assert difference.startswith("transform ")
