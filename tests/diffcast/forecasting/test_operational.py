"""Operational forecasts: which frames they take, what they write, and a watch that survives."""

import os
import signal
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sample_batch
from dataset.frames.config import read_config
from diffcast.evaluation.results import describe_source
from diffcast.forecaster import Architecture
from diffcast.forecasting import operational, watching
from diffcast.forecasting.forecasts import ForecastSettings
from diffcast.forecasting.operational import Operation
from diffcast.forecasting.watching import watch
from models import Advection
from tests.tiny import BACKBONES
from utils.errors import InputError
from utils.weights import save_weights

START, STEP = datetime(2023, 5, 1, 12), timedelta(minutes=6)
SHAPE = (12, 20)  # pixels of a frame; the model wants 16 x 24
ARCHITECTURE = Architecture(
    "simvp", True, (1, 16, 24), frames_out=7, backbone_options=BACKBONES["simvp"], dim=8, dim_mults=(1, 2)
)
CONFIG = {
    **{"name": "reflectivity", "pattern": "%Y%m%d%H%M.png", "interval": 6, "extent_km": 100, "units": "dBZ"},
    **{"scale": 0.5, "offset": -20, "range": [-10, 50], "thresholds": [10, 20, 30], "missing": 255},
}


class Radar:
    """A folder in which frames arrive; a corner of them is out of reach, and the first lacks its last row."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        (folder / "frames.yaml").write_text(yaml.safe_dump(CONFIG))

    def path(self, number: int) -> Path:
        return self.folder / f"{START + number * STEP:%Y%m%d%H%M}.png"

    def send(self, *numbers: int):
        for number in numbers:
            frame = np.random.default_rng(number).integers(0, 200, SHAPE).astype(np.uint8)
            frame[:3, :4] = 255
            if number == 0:
                frame[-1] = 255
            Image.fromarray(frame).save(self.path(number))


@pytest.fixture
def radar(tmp_path) -> Radar:
    """Frames 0 to 4, of which the last is that of 12:24."""
    radar = Radar(tmp_path / "radar")
    radar.send(*range(5))
    return radar


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ARCHITECTURE.build().eval()


@pytest.fixture
def operation(radar, model, tmp_path) -> Operation:
    (tmp_path / "out").mkdir()
    settings = ForecastSettings(seed=3, members=4, sampling_steps=2)
    return Operation(model, "diffcast_simvp", read_config(radar.folder), settings, tmp_path / "out", "tiny.safetensors")


@pytest.fixture
def drawn(monkeypatch) -> list[dict]:
    """What would have been drawn; drawing takes longer than forecasting."""
    calls = []
    names = ("folder", "name", "observed", "target", "forecasts", "source", "pixel_km", "time")
    monkeypatch.setattr(
        operational, "draw_case", lambda *words, grid, place: calls.append(dict(zip(names, words, strict=True)))
    )
    return calls


def decoded(variable: h5py.Dataset) -> np.ndarray:
    """Values in units, as a reader of NetCDF finds them."""
    about = variable.attrs
    stored = variable[()]
    return np.where(stored == about["_FillValue"], np.nan, stored * about["scale_factor"] + about["add_offset"])


def now(number: float = 4) -> datetime:
    """When frame `number` is the newest that can be."""
    return START + number * STEP


def test_the_file_holds_the_models_forecast_in_units_on_the_grid_of_the_frames(operation, model, drawn, monkeypatch):
    made, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda *words, **named: made.append(generate(*words, **named)) or made[-1])
    path = operation.run(now())
    assert path.name == "forecast_20230501T122400Z.nc"
    unseen = np.zeros(SHAPE, bool)
    unseen[:3, :4] = True
    expected = np.where(unseen, np.nan, -10 + 60 * made[0].forecast[0, :, :, 0, :12, :20].numpy())
    with h5py.File(path) as file:
        members = decoded(file["forecast"])
        np.testing.assert_allclose(members, expected, atol=0.001)
        np.testing.assert_allclose(decoded(file["forecast_mean"]), expected.mean(0), atol=0.001)
        chances = decoded(file["exceedance_probability"])
        reached = np.stack([(expected >= threshold).mean(0) for threshold in (10, 20, 30)])
        np.testing.assert_allclose(chances, np.where(unseen, np.nan, reached), atol=1e-6)
        within = decoded(file["exceedance_probability_within"])
        ever = np.stack([(expected[:, :5].max(1) >= threshold).mean(0) for threshold in (10, 20, 30)])
        assert file["forecast_window"][()].tolist() == [30]
        assert file["forecast_window_bounds"][()].tolist() == [[0, 30]]
        np.testing.assert_allclose(within[:, 0], np.where(unseen, np.nan, ever), atol=1e-6)
        observed = file["observed_frames"][()]
        assert (observed == 0).tolist() == unseen.tolist()
        assert (observed[-1] == 4).all()
        assert (observed[3:-1] == 5).all()


def test_rates_that_the_model_saw_in_dbz_are_written_in_units(radar, operation, model, drawn, monkeypatch):
    rates = {"units": "mm/h", "scale": 0.25, "offset": 0, "range": [0, 60], "thresholds": [1, 5], "transform": "dbz"}
    (radar.folder / "frames.yaml").write_text(yaml.safe_dump(CONFIG | rates))
    operation = replace(operation, config=read_config(radar.folder))
    made, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda *words, **named: made.append(generate(*words, **named)) or made[-1])
    with h5py.File(operation.run(now())) as file:
        members, mean = decoded(file["forecast"]), decoded(file["forecast_mean"])
        chances = decoded(file["exceedance_probability"])
    frames = made[0].forecast[0, :, :, 0, :12, :20].double().numpy()
    expected = (np.expm1(frames * np.log1p(200 * 60**1.6)) / 200) ** (1 / 1.6)
    seen = np.isfinite(members)
    assert seen.mean() > 0.9
    np.testing.assert_allclose(members[seen], expected[seen], atol=0.0015)
    np.testing.assert_allclose(mean, members.mean(0), atol=0.002)
    reached = np.stack([(members >= threshold).mean(0) for threshold in (1, 5)])
    assert np.nanmean(np.abs(chances - reached)) < 0.001


def test_coordinates_tell_time_place_member_and_threshold(operation, drawn):
    with h5py.File(operation.run(now())) as file:
        assert [scale[0].name for scale in file["forecast"].dims] == ["/realization", "/time", "/y", "/x"]
        assert file["exceedance_probability"].dims[0][0].name == "/threshold"
        assert file["realization"][()].tolist() == [1, 2, 3, 4]
        assert file["threshold"][()].tolist() == [10, 20, 30]
        assert file["forecast_period"][()].tolist() == [6, 12, 18, 24, 30, 36, 42]
        reference = file["forecast_reference_time"][()]
        assert reference == np.datetime64(now(), "s").astype(int)
        np.testing.assert_array_equal(file["time"][()], reference + 60 * file["forecast_period"][()])
        np.testing.assert_allclose(file["x"][()], 5 * np.arange(20) + 2.5)
        np.testing.assert_allclose(file["y"][()], 5 * np.arange(12)[::-1] + 2.5)
        assert file["forecast"].attrs["units"] == b"dBZ"
        assert file["forecast"].attrs["standard_name"] == b"equivalent_reflectivity_factor"
        assert file.attrs["Conventions"] == b"CF-1.8, ACDD-1.3"
        assert "tiny.safetensors" in file.attrs["source"].decode()


def test_a_forecast_from_a_grid_that_goes_from_south_to_north_lacks_data_where_the_input_does(model, tmp_path, drawn):
    folder, rising = tmp_path / "southup", 2.0 * np.arange(12) + 1
    folder.mkdir()
    settings = {"name": "reflectivity", "pattern": "%Y%m%d%H%M.nc", "variable": "dbz", "interval": 6, "extent_km": 40}
    more = {"units": "dBZ", "range": [0, 60], "thresholds": [10, 20]}
    (folder / "frames.yaml").write_text(yaml.safe_dump(settings | more))
    for number in range(5):
        with h5py.File(folder / f"{now(number):%Y%m%d%H%M}.nc", "w") as file:
            field = np.random.default_rng(number).uniform(0, 60, SHAPE).astype(np.float32)
            field[rising < 7] = np.nan  # in the south
            file["dbz"], file["y"] = field, rising
            file["y"].attrs["standard_name"] = "projection_y_coordinate"
            file["y"].make_scale("y")
            file["dbz"].dims[0].attach_scale(file["y"])
    about = ForecastSettings(seed=3, members=1, sampling_steps=2), tmp_path, "tiny.safetensors"
    with h5py.File(Operation(model, "diffcast_simvp", read_config(folder), *about).run(now())) as file:
        np.testing.assert_array_equal(file["y"][()], rising[::-1])
        np.testing.assert_array_equal((file["observed_frames"][()] == 0).all(1), file["y"][()] < 7)
        np.testing.assert_array_equal(np.isnan(decoded(file["forecast"])[0, 0]).all(1), file["y"][()] < 7)


def test_pictures_show_values_in_units_and_what_is_missing(operation, drawn):
    operation.run(now())
    (picture,) = drawn
    source = picture["source"]
    assert (picture["time"], picture["pixel_km"]) == (now(), pytest.approx(5))
    assert (source.units, source.thresholds, source.bounds[0]) == ("dBZ", (10, 20, 30), -10)
    observed = picture["observed"][:, 0]
    assert observed.shape == (5, *SHAPE)
    assert observed.isnan().sum() == 5 * 12 + 20
    stored = np.random.default_rng(4).integers(0, 200, SHAPE).astype(np.uint8)
    expected = np.clip(0.5 * stored[5:].astype(float) - 20, -10, 50)
    np.testing.assert_allclose(source.offset + source.scale * observed[4, 5:], expected, atol=0.001)
    for forecast in picture["forecasts"].values():
        assert (forecast.isnan().sum((-2, -1)) == 12).all()


def test_noise_depends_on_seed_and_time_alone(operation, radar, drawn, tmp_path):
    values = []
    for attempt in range(2):
        with h5py.File(operation.run(now())) as file:
            values.append(file["forecast"][()])
        operation.path_of(now()).rename(tmp_path / f"{attempt}.nc")
    assert np.array_equal(*values)
    for number in range(5):
        radar.path(number).rename(radar.folder / f"{START + (number + 1) * STEP:%Y%m%d%H%M}.moved")
    for path in radar.folder.glob("*.moved"):
        path.rename(path.with_suffix(".png"))
    with h5py.File(operation.run(now(5))) as file:
        assert not np.array_equal(file["forecast"][()], values[0])


@pytest.mark.parametrize(
    ("gone", "at", "message"),
    [
        ((), 8, r"newest frame in .* 12:24 UTC, which is more than 3 intervals \(18 minutes\) ago"),
        ((2,), 4, r"202305011212.png is missing: .* needs the last 5 frames"),
        ((), -20, r"none of the 5 frames in .* counts at present; 5 of them are of the future"),
    ],
    ids=["stale", "incomplete", "in the future"],
)
def test_input_that_cannot_be_used_is_refused(operation, radar, gone, at, message):
    for number in gone:
        radar.path(number).unlink()
    with pytest.raises(InputError, match=message):
        operation.run(now(at))
    assert list(operation.folder.iterdir()) == []


def test_nothing_is_overwritten(operation, drawn):
    path = operation.run(now())
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"forecast_20230501T122400Z.nc exists already"):
        operation.run(now(5))
    assert path.read_bytes() == before
    assert len(drawn) == 1


def test_a_forecast_without_pictures_is_still_one(operation, monkeypatch, caplog):
    def full_disk(*_, **__):
        raise InputError("cannot write it.png: No space left on device.")

    monkeypatch.setattr(operational, "draw_case", full_disk)
    assert operation.run(now()).is_file()
    assert "No space left" in caplog.text


def test_a_watch_forecasts_every_whole_frame_once_and_survives_what_fails(
    operation, radar, drawn, model, monkeypatch, caplog
):
    whole = []

    def half_a_frame():
        radar.send(5)
        whole.append(radar.path(5).read_bytes())
        radar.path(5).write_bytes(whole[0][:100])

    def the_other_half():
        radar.path(5).write_bytes(whole[0])

    def out_of_memory():
        radar.send(6)
        monkeypatch.setattr(model, "generate", fail)

    def memory_again():
        monkeypatch.setattr(model, "generate", generate)

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    generate = model.generate
    events = [lambda: None, half_a_frame, lambda: None, the_other_half, out_of_memory, lambda: None, memory_again, stop]
    coming = iter(events)
    monkeypatch.setattr(watching, "time", SimpleNamespace(sleep=lambda _: next(coming)()))
    handler = signal.getsignal(signal.SIGTERM)
    with caplog.at_level("INFO"):
        watch(operation, 10, clock=lambda: now(6))
    forecasts = [f"forecast_20230501T12{minutes}00Z" for minutes in (24, 30, 36)]
    assert [picture["name"] for picture in drawn] == forecasts
    assert sorted(path.stem for path in operation.folder.iterdir()) == [*forecasts, "watch"]
    complaints = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(complaints) == 2
    assert "202305011230.png cannot be read" in complaints[0]
    assert "out of memory" in complaints[1]
    assert caplog.messages[-1] == "stopped"
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_watch_over_a_dead_radar_complains_once(operation, monkeypatch, caplog):
    later = iter(range(8, 40))

    def clock():
        try:
            return now(next(later) + 0.7)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(watching, "time", SimpleNamespace(sleep=lambda _: None))
    watch(operation, 10, clock)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def described(operation, **changes) -> dict:
    """What weights say that were trained on data like the folder's, but for the changes."""
    return describe_source(operation.config.source(widening=1.2), operation.model) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": 5}, r"units 5 / 'dBZ'"),
        ({"units": "mm/h"}, r"tiny.safetensors was trained on .*frames.yaml .*: units 'mm/h' / 'dBZ'\."),
        ({"interval": 5.0}, r": interval 5.0 / 6.0\."),
        ({"offset": 0.0, "scale": 255.0, "units": "VIL"}, r": units 'VIL' / 'dBZ'; range \[0, 255\] / \[-10, 50\]\."),
        ({"scale": 70.0}, r": range \[-10, 60\] / \[-10, 50\]\."),
        ({"scale": "much"}, r": range unknown / \[-10, 50\]\."),
    ],
)
def test_weights_of_other_data_are_refused_by_name(operation, changes, message):
    replace(operation, trained=described(operation, name="other", thresholds=[20, 40]))
    with pytest.raises(InputError, match=message):
        replace(operation, trained=described(operation, **changes))


@pytest.mark.parametrize("trained", [None, "nothing", {}, {"units": "dBZ"}, {"units": "dbz"}])
def test_weights_that_say_little_about_their_data_stay_usable(operation, trained):
    assert list(replace(operation, trained=trained).doubts(operation.newest(now()))) == []


def test_doubts_are_told(operation, radar, drawn, caplog):
    radar.path(4).write_bytes(radar.path(3).read_bytes())
    replace(operation, trained=described(operation, pixel_km=2.0)).run(now())
    doubts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert doubts == [
        "the frame of 2023-05-01 12:24 UTC is no different from the one before",
        "pixels are 5 km wide; tiny.safetensors was trained on 2 km",
    ]


def test_a_watch_that_starts_again_repeats_nothing(operation, drawn, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watching, "time", SimpleNamespace(sleep=interrupt))
    for _ in range(2):
        watch(operation, 10, clock=now)
    assert len(drawn) == 1


def test_a_backbone_alone_has_no_members(operation, model):
    with pytest.raises(InputError, match=r"SimVP is a backbone alone.*leave out members"):
        Operation(model.backbone, "simvp", operation.config, operation.settings, operation.folder, "tiny.safetensors")


def test_advection_alone_makes_operational_forecasts(operation, radar, drawn):
    settings = ForecastSettings(baselines=())
    alone = Operation(
        Advection(ARCHITECTURE.frame_shape, 5, ARCHITECTURE.frames_out),
        *("advection", operation.config, settings, operation.folder, "none"),
    )
    alone.run(now())
    assert list(drawn[0]["forecasts"]) == ["advection"]


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, model.state_dict(), {"architecture": ARCHITECTURE.to_metadata()})
    return str(path)


def command(*words) -> list[str]:
    return [str(word) for word in (*words, "--sampling_steps", 2)]


def test_the_command_line_refuses_weights_of_other_data(operation, model, radar, tmp_path, capsys):
    path = tmp_path / "vil.safetensors"
    metadata = {"architecture": ARCHITECTURE.to_metadata(), "source": described(operation, units="VIL byte")}
    save_weights(path, model.state_dict(), metadata)
    with pytest.raises(SystemExit):
        sample_batch.main(command("--latest", radar.folder, "--ckpt_milestone", path, "--out", tmp_path / "out"))
    assert "units 'VIL byte' / 'dBZ'" in capsys.readouterr().err


def test_the_command_line_writes_file_and_pictures(radar, weights, tmp_path):
    words = ["--latest", radar.folder, "--ckpt_milestone", weights, "--members", 2, "--out", tmp_path / "out"]
    sample_batch.main(command(*words, "--now", "2023-05-01T14:30+02:00"))
    stem = "forecast_20230501T122400Z"
    expected = {f"{stem}.nc", *(f"{stem}{kind}.{suffix}" for kind in ("", "_ensemble") for suffix in ("png", "gif"))}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    with h5py.File(tmp_path / "out" / f"{stem}.nc") as file:
        assert "tiny.safetensors (SHA-256 " in file.attrs["source"].decode()


@pytest.mark.parametrize(("course", "size"), [({"crop": 8}, SHAPE), ({"crop": None}, (5, 8)), ({}, (5, 8))])
def test_weights_trained_on_crops_forecast_the_grid_of_the_files(course, size, radar, tmp_path):
    architecture = replace(ARCHITECTURE, frame_shape=(1, 8, 8))
    metadata = {"architecture": architecture.to_metadata(), "course": course}
    save_weights(tmp_path / "crops.safetensors", architecture.build().state_dict(), metadata)
    words = ["--latest", radar.folder, "--ckpt_milestone", tmp_path / "crops.safetensors", "--out", tmp_path / "out"]
    sample_batch.main(command(*words, "--now", "2023-05-01T12:30"))
    with h5py.File(tmp_path / "out" / "forecast_20230501T122400Z.nc") as file:
        assert file["forecast"].shape == (1, 7, *size)
        assert np.diff(file["x"][()]) == pytest.approx(100 / size[1])
        unseen = np.isnan(decoded(file["forecast"])[0, 0])
    if size == SHAPE:
        expected = np.zeros(SHAPE, bool)
        expected[:3, :4] = True
        np.testing.assert_array_equal(unseen, expected)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--watch"], "--latest"),
        (["--tile", "0"], "--latest"),
        (["--now", "2023-05-01"], "--latest"),
        (["--latest", "DIR", "--now", "noon"], "noon"),
        (["--latest", "DIR", "--now", "2023-05-01", "--watch"], "--watch"),
        (["--latest", "DIR", "--watch", "-3"], "--watch"),
        (["--latest", "DIR", "--max_age", "0"], "--max_age"),
        (["--latest", "DIR"], "minutes) ago"),
        (["--latest", "DIR/none"], "does not exist"),
        (["--seqs", "DIR"], "square"),
    ],
)
def test_mistakes_get_one_sentence(radar, weights, tmp_path, capsys, words, named):
    words = [word.replace("DIR", str(radar.folder)) for word in words]
    with pytest.raises(SystemExit) as stop:
        sample_batch.main(command(*words, "--ckpt_milestone", weights, "--out", tmp_path / "out"))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert named in error
