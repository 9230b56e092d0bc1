"""A watch whose frames come late, early or twice, and that starts again."""

import json
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dataset.frames.config import read_config
from diffcast.forecasting import watching
from diffcast.forecasting.operational import Operation
from diffcast.forecasting.watching import watch
from tests.diffcast.forecasting.test_operational import SHAPE, START, STEP, now
from utils.errors import InputError


@pytest.fixture
def run(operation, made, monkeypatch):
    """Let a watch look once before each of some events, and at last once more."""

    def run(*events, until=7, clock=None, operation=operation):
        coming = iter([*events, lambda: (_ for _ in ()).throw(KeyboardInterrupt)])
        monkeypatch.setattr(watching, "time", SimpleNamespace(sleep=lambda _: next(coming)()))
        watch(operation, 10, clock or (lambda: now(until)))

    return run


@pytest.fixture
def made(monkeypatch) -> list[datetime]:
    """Times of the forecasts, whose files are empty."""
    times = []

    def forecast(_, newest, path):
        path.touch()
        times.append(newest.times[-1])

    monkeypatch.setattr(Operation, "forecast", forecast)
    return times


def nothing():
    pass


def state_of(operation) -> dict:
    return json.loads((operation.folder / "watch.json").read_text())


def test_a_late_frame_gives_the_forecasts_that_waited_for_it_the_newest_first(radar, run, made, caplog):
    run(lambda: radar.send(6, 7), nothing, lambda: radar.send(5), nothing, nothing, nothing)
    assert made == [now(4), now(7), now(6), now(5)]
    complaints = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(complaints) == 1
    assert "202305011230.png is missing: a forecast from 2023-05-01 12:42 UTC" in complaints[0]


def test_a_frame_that_is_too_late_gives_no_forecast_of_its_own(radar, run, made):
    clock = iter([now(4), *[now(9.5)] * 6])
    run(lambda: radar.send(6, 7, 8, 9), lambda: radar.send(5), *[nothing] * 4, clock=lambda: next(clock))
    assert made == [now(4), now(9), now(8), now(7)]


def test_a_frame_that_is_delivered_again_or_twice_gives_one_forecast(radar, run, made, operation):
    def again():
        for number in (3, 4):
            Image.fromarray(np.zeros(SHAPE, np.uint8)).save(radar.path(number))

    run(again, nothing)
    assert made == [now(4)]


def test_of_two_names_near_one_time_the_nearer_counts_and_one_forecast_is_made(radar, run, made, operation):
    settings = (radar.folder / "frames.yaml").read_text().replace("%Y%m%d%H%M", "%Y%m%d%H%M%S")
    (radar.folder / "frames.yaml").write_text(f"{settings}tolerance: 60\n")
    for number in range(5):
        radar.path(number).rename(radar.folder / f"{START + number * STEP:%Y%m%d%H%M}20.png")
    tolerant = replace(operation, config=read_config(radar.folder))

    def nearer():
        Image.fromarray(np.full(SHAPE, 90, np.uint8)).save(radar.folder / f"{now(4):%Y%m%d%H%M}05.png")
        assert (tolerant.newest(now(4)).frames[-1, 0] == (0.5 * 90 - 20 + 10) / 60).sum() > 200

    run(nearer, nothing, operation=tolerant)
    assert made == [now(4)]


def test_clocks_that_are_off_are_complained_of_once(radar, run, made, caplog):
    minutes = iter(range(-300, 0))
    run(*[nothing] * 5, clock=lambda: now(next(minutes) / 10 - 10))
    complaints = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(complaints) == 1
    assert "5 of them are of the future: see to the clock, or give timezone" in complaints[0]
    assert made == []


def test_a_watch_that_starts_again_goes_on_where_it_was(radar, run, made, operation, caplog):
    run(lambda: radar.send(6), nothing)
    assert state_of(operation)["forecast"] == [now(4).isoformat()]
    for path in operation.folder.glob("*.nc"):
        path.unlink()  # another program has taken it
    caplog.clear()
    with caplog.at_level("INFO"):
        run(nothing, lambda: radar.send(5), nothing, nothing)
    assert "after 1 forecasts since 2023-05-01 12:24 UTC, last complaint: " in caplog.text
    assert made == [now(4), now(6), now(5)]
    assert "no forecast" not in caplog.text


def test_a_damaged_state_is_kept_aside_and_nothing_is_repeated(run, made, operation, caplog):
    run()
    for content, number in (("{", 1), (json.dumps(state_of(operation) | {"since": 3}), 2)):
        (operation.folder / "watch.json").write_text(content)
        run()
        assert (operation.folder / f"watch.json.damaged{number}").read_text() == content
        assert state_of(operation)["archive"] == str(operation.config.file)
    assert caplog.text.count("is damaged and now called watch.json.damaged") == 2
    assert len(made) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"archive": "/other/frames.yaml"}, "is of a watch over /other/frames.yaml; choose another --out"),
        ({"watch": 99}, "is not the state of a watch of this version; move it"),
    ],
)
def test_the_state_of_another_watch_is_refused_and_stays(run, operation, content, message):
    run()
    foreign = json.dumps(state_of(operation) | content)
    (operation.folder / "watch.json").write_text(foreign)
    with pytest.raises(InputError, match=message):
        run()
    assert (operation.folder / "watch.json").read_text() == foreign


def test_a_state_that_cannot_be_written_does_not_end_the_watch(run, made, operation, monkeypatch, caplog):
    def full_disk(*_):
        raise InputError("cannot write watch.json: No space left on device.")

    monkeypatch.setattr("diffcast.forecasting.watchstate.replacing", full_disk)
    run(nothing)
    assert len(made) == 1
    assert caplog.text.count("No space left") == 1
