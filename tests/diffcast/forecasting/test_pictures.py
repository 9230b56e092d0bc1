"""Pictures of a case: which files, which rows, and the numbers behind mean, spread and probability."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.source import SHANGHAI, VIL, synthetic, vil
from diffcast.forecasting import pictures
from diffcast.forecasting.pictures import draw_case, style_of, title
from utils.visualize import Styled, render

OBSERVED = torch.zeros(2, 1, 8, 8)


@pytest.fixture
def drawn(monkeypatch):
    """The rows of each picture, by the name of its file."""
    rows = {}
    for draw in ("draw_strip", "draw_animation"):
        monkeypatch.setattr(pictures, draw, lambda path, inputs, of_one, *_: rows.update({path.name: of_one}))
    return rows


def ensemble(*values):
    """Members (M, 1, 1, 1, 1) of one pixel, given in bytes of VIL."""
    return (torch.tensor(values) / 255).view(-1, 1, 1, 1, 1)


def test_pictures_of_synthetic_storms_say_so(drawn):
    members = torch.rand(3, 2, 1, 8, 8)
    draw_case(Path(), "storm", OBSERVED, None, {"diffcast": members}, synthetic(VIL), 16.0)
    rows = drawn["storm_ensemble.png"]
    assert "P(synthetic storms ≥ 74)" in rows
    assert rows["Mean"].style.units == "synthetic VIL byte\n(kg/m²)"
    assert rows["Spread"].style.units == "synthetic VIL byte"


def test_the_legend_of_vil_gives_its_physical_meaning():
    labels = ["16 (0.15)", "31 (0.26)", "59 (0.53)", "74 (0.78)", "100 (1.5)"]
    assert style_of(VIL).labels == [*labels, "133 (3.5)", "160 (7.1)", "181 (12)", "219 (32)"]
    assert style_of(SHANGHAI).labels == ["10", "15", "20", "25", "30", "35", "40", "50", "60"]
    assert style_of(SHANGHAI).units == "dBZ"


@pytest.mark.parametrize(
    ("byte", "kg_m2"), [(0, 0), (5, 0), (6, 0.0441), (18, 0.176), (19, 0.189), (133, 3.53), (219, 32.2), (254, 79.2)]
)
def test_bytes_of_vil_follow_the_scale_of_sevir(byte, kg_m2):
    assert vil(byte) == pytest.approx(kg_m2, rel=5e-3)


def test_a_deterministic_case_is_a_strip_and_an_animation(tmp_path):
    trend = torch.rand(1, 3, 1, 8, 8)
    written = draw_case(tmp_path, "storm.1", OBSERVED, trend[0], {"trend": trend}, VIL, 16.0)
    assert written == [tmp_path / "storm.1.png", tmp_path / "storm.1.gif"]
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_an_ensemble_brings_a_second_strip_and_animation(tmp_path):
    forecasts = {"diffcast_simvp": torch.rand(3, 4, 1, 8, 8), "trend": torch.rand(1, 4, 1, 8, 8)}
    written = draw_case(tmp_path, "storm", OBSERVED, None, forecasts, VIL, 16.0)
    assert [path.name for path in written] == ["storm.png", "storm.gif", "storm_ensemble.png", "storm_ensemble.gif"]
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_rows_are_the_target_the_members_and_what_they_say_together(drawn, tmp_path):
    forecasts = {"diffcast_simvp": torch.rand(10, 4, 1, 8, 8), "trend": torch.rand(1, 4, 1, 8, 8)}
    draw_case(tmp_path, "storm", OBSERVED, torch.rand(4, 1, 8, 8), forecasts, VIL, 16.0)
    members = [f"DiffCast {number}" for number in range(1, 9)]
    assert list(drawn["storm.png"]) == list(drawn["storm.gif"]) == ["Target", *members, "Trend"]
    assert list(drawn["storm_ensemble.png"]) == ["Target", "Mean", "Spread", "P(VIL ≥ 74)", "P(VIL ≥ 133)"]
    assert drawn["storm_ensemble.gif"].keys() == drawn["storm_ensemble.png"].keys()


def test_mean_spread_and_probabilities_are_of_all_members(drawn, tmp_path):
    values = [0, 73, 74, 74, 100, 132, 133, 255, 0, 0]
    draw_case(tmp_path, "storm", torch.zeros(1, 1, 1, 1), None, {"dressed": ensemble(*values)}, VIL, 16.0)
    rows = {label: row.style.scale * float(row.frames) for label, row in drawn["storm_ensemble.png"].items()}
    expected = {"Mean": np.mean(values), "Spread": np.std(values, ddof=1), "P(VIL ≥ 74)": 60, "P(VIL ≥ 133)": 20}
    assert rows == pytest.approx(expected)


def test_values_count_from_the_offset_of_their_source(drawn, tmp_path):
    source = replace(VIL, offset=-10.0, scale=60.0, thresholds=(5, 10, 20), units="dBZ")
    values = torch.tensor([0.0, 19.9, 20.0, 40.0]).view(-1, 1, 1, 1, 1) / 60
    draw_case(tmp_path, "storm", torch.zeros(1, 1, 1, 1), None, {"dressed": values}, source, 16.0)
    mean, spread, *chances = drawn["storm_ensemble.png"].values()
    assert (mean.style.offset, mean.style.units, spread.style.offset) == (-10, "dBZ", 0)
    assert list(drawn["storm_ensemble.png"])[2:] == ["P(VIL ≥ 10)", "P(VIL ≥ 20)"]
    assert [float(row.frames) for row in chances] == [0.5, 0.25]


def test_a_probability_with_a_missing_member_is_missing(drawn, tmp_path):
    draw_case(tmp_path, "storm", torch.zeros(1, 1, 1, 1), None, {"dressed": ensemble(80.0, torch.nan)}, VIL, 16.0)
    assert torch.isnan(drawn["storm_ensemble.png"]["P(VIL ≥ 74)"].frames).all()


def test_two_ensembles_stand_side_by_side(drawn, tmp_path):
    forecasts = {"diffcast_simvp": torch.rand(8, 4, 1, 8, 8), "dressed": torch.rand(8, 4, 1, 8, 8)}
    draw_case(tmp_path, "storm", OBSERVED, None, forecasts, VIL, 16.0)
    assert list(drawn["storm.png"]) == [
        f"{name} {number}" for name in ("DiffCast", "Dressed") for number in range(1, 5)
    ]
    labels = list(drawn["storm_ensemble.png"])
    assert labels[:4] == ["DiffCast: Mean", "Dressed: Mean", "DiffCast: Spread", "Dressed: Spread"]


@pytest.mark.parametrize("members", [4, 8, 10, 20, 50])
def test_shares_of_members_are_not_rounded_below_their_colour(drawn, tmp_path, members):
    shares = []
    for reached in range(members + 1):
        values = ensemble(*[255] * reached, *[0] * (members - reached))
        draw_case(tmp_path, "storm", torch.zeros(1, 1, 1, 1), None, {"dressed": values}, VIL, 16.0)
        shares.append(drawn["storm_ensemble.png"]["P(VIL ≥ 74)"])
    style = shares[0].style
    palette = [tuple(bytes.fromhex(color[1:])) for color in style.colors]
    found = [palette.index(tuple(render(frames, style).ravel())) for frames, _ in shares]
    tens = [min(10 * reached // members, 9) + 1 for reached in range(1, members + 1)]
    assert found == [0, *tens]


def test_styles_differ_from_that_of_the_frames_and_share_its_background(drawn, tmp_path):
    draw_case(tmp_path, "storm", OBSERVED, None, {"dressed": torch.rand(3, 4, 1, 8, 8)}, VIL, 16.0)
    mean, spread, likely, extreme = drawn["storm_ensemble.png"].values()
    assert isinstance(mean, Styled)
    assert mean.style == pictures.style_of(VIL)
    assert (spread.style.units, likely.style.units) == (VIL.units, "%")
    assert likely.style == extreme.style
    assert likely.style.bounds == (0, 1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    assert {style.colors[0] for style in (mean.style, spread.style, likely.style)} == {VIL.colors[0]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("diffcast_simvp", "DiffCast"),
        ("trend", "Trend"),
        ("phydnet", "PhyDNet"),
        ("my_package.my_module:MyNet", "MyNet"),
    ],
)
def test_titles_are_spelt_as_in_the_papers(name, expected):
    assert title(name) == expected
