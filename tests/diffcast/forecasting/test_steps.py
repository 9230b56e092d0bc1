"""Extrapolation, S-PROG and STEPS, against pysteps called as its examples do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import run
import sample_batch
from dataset.source import SHANGHAI, VIL
from diffcast.forecasting import steps
from diffcast.forecasting.forecasts import ForecastSettings
from diffcast.forecasting.steps import Nowcaster, Window, frames_of, rain_rates
from tests.tiny import InMemory
from utils.errors import InputError

pytest.importorskip("pysteps")
pytest.importorskip("cv2")

RAIN = replace(SHANGHAI, name="rain", units="mm/h", scale=60.0, thresholds=(0.1, 1, 10))
METHODS = ("extrapolation", "sprog", "steps")


def storms(frames=5, height=48, width=64, seed=0):
    """Reflectivity `(T, 1, H, W)` as bytes of dBZ, moving by two pixels per frame; dry in places."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((height, width + 2 * frames)), 3)
    dbz = 18 + 14 * field / field.std()
    moving = [dbz[:, 2 * (frames - t) : 2 * (frames - t) + width] for t in range(frames)]
    return np.where(np.array(moving) < 5, 0, moving).round().astype(np.uint8)[:, None]


def frames_in_dbz(**options):
    return torch.from_numpy(storms(**options)).float() / SHANGHAI.scale


def nowcaster(methods=METHODS, source=SHANGHAI, leads=3, members=2, **options):
    return Nowcaster(methods, source, pixel_km=2.0, leads=leads, members=members, **options)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_those_of_pysteps_with_the_settings_of_its_examples(method, capsys):
    from pysteps import motion, nowcasts
    from pysteps.utils import conversion, transformation

    metadata = {"transform": "dB", "unit": "dBZ", "threshold": 0.0, "zerovalue": 0.0, "accutime": 5}
    dbz = storms()[-3:, 0].astype(float)
    rates, metadata = conversion.to_rainrate(dbz, metadata, zr_a=200.0, zr_b=1.6)
    rates = np.where(dbz == 0, 0, rates)
    decibels, _ = transformation.dB_transform(rates, {**metadata, "transform": None}, threshold=0.1, zerovalue=-15.0)
    velocity = motion.get_method("LK")(decibels)
    words = {"precip_thr": -10.0, "n_cascade_levels": 6} if method != "extrapolation" else {}
    if method == "steps":
        words |= {"n_ens_members": 2, "kmperpixel": 2.0, "timestep": 6.0, "seed": 7}
    inputs = rates[-1] if method == "extrapolation" else decibels
    expected = nowcasts.get_method(method)(inputs, velocity, 3, **words)
    if method != "extrapolation":
        expected, _ = transformation.dB_transform(expected, {"transform": "dB"}, threshold=-10.0, inverse=True)
    capsys.readouterr()
    np.random.seed(3)
    window = Window(rain_rates(frames_in_dbz()[-3:, 0], SHANGHAI), 3, 2, 7, pixel_km=2.0, interval=6.0)
    made = steps.METHODS[method](window)
    np.testing.assert_allclose(made, expected if method == "steps" else expected[None], rtol=1e-5, atol=1e-9)
    assert np.isnan(expected).any()
    assert expected[np.isfinite(expected)].max() > 1
    assert capsys.readouterr().out == ""
    assert np.random.random() == np.random.RandomState(3).random_sample()


def test_one_millimetre_per_hour_is_23_dbz():
    frame = torch.tensor([[0.0, 10 * np.log10(200) / 90, torch.nan]], dtype=torch.float64)
    np.testing.assert_allclose(rain_rates(frame, SHANGHAI), [[0, 1, np.nan]])
    torch.testing.assert_close(frames_of(np.array([[0, 1, np.nan]]), SHANGHAI), frame.nan_to_num(0).float())
    np.testing.assert_allclose(rain_rates(frame, RAIN), [[0, 60 * np.log10(200) / 9, np.nan]])
    torch.testing.assert_close(frames_of(np.array([[3, 90, np.nan]]), RAIN), torch.tensor([[0.05, 1, 0]]))


def test_a_domain_without_rain_stays_dry():
    drizzle = torch.full((5, 1, 48, 64), 6 / 90)  # 0.09 mm/h
    for made in nowcaster().forecast(drizzle).values():
        assert (made == 0).all()


def test_extrapolation_stands_in_where_steps_is_undefined(caplog):
    caplog.set_level("INFO")
    observed = frames_in_dbz()
    observed[-2] = 0
    one = nowcaster()
    for frames in (observed, observed.flip(-1)):
        made = one.forecast(frames)
        assert made["extrapolation"].max() > 0.3
        assert torch.equal(made["sprog"], made["extrapolation"])
        assert torch.equal(made["steps"], made["extrapolation"].expand(2, -1, -1, -1, -1))
    assert [record.message.split(":")[0] for record in caplog.records] == ["sprog", "steps"]


@pytest.mark.parametrize("missing", [np.s_[:, :, :10], np.s_[3, :, 5:9], np.s_[4], np.s_[:]])
def test_missing_data_leave_nothing_undefined(missing):
    observed = frames_in_dbz()
    observed[missing] = torch.nan
    made = nowcaster().forecast(observed)
    assert {name: len(one) for name, one in made.items()} == {"extrapolation": 1, "sprog": 1, "steps": 2}
    for one in made.values():
        assert ((one >= 0) & (one <= 1)).all()


class Tiles(InMemory):
    """The left and the right half of each domain."""

    def __len__(self):
        return 2 * len(self.frames)

    def part_of(self, index):
        half = self.frames.shape[-1] // 2
        columns = slice(0, half) if index % 2 == 0 else slice(half, None)
        return index // 2, (slice(None), columns)

    def map_frames(self, number):
        return self.frames[number]

    def __getitem__(self, index):
        number, part = self.part_of(index)
        return self.frames[(number, ..., *part)]


@pytest.fixture
def tiles():
    return Tiles(torch.stack([frames_in_dbz(frames=8, seed=seed) for seed in (0, 1)]))


def test_tiles_are_parts_of_one_forecast_of_the_domain(tiles, monkeypatch):
    calls = []
    monkeypatch.setitem(steps.METHODS, "steps", lambda window: calls.append(window.seed) or original(window))
    original = steps.steps
    made = nowcaster().forecast_sequences(tiles, [0, 1, 2, 3], 5)
    assert len(set(calls)) == len(calls) == 2
    for name, members in nowcaster().forecast(tiles.frames[0, :5]).items():
        torch.testing.assert_close(torch.cat([*made[name][:2]], dim=-1), members, rtol=0, atol=0)
        assert torch.count_nonzero(made[name][0, ..., -1]) > 0


def test_random_numbers_depend_on_the_seed_and_the_frames_alone(tiles):
    together = nowcaster().forecast_sequences(tiles, [0, 1, 2, 3], 5)["steps"]
    alone = [nowcaster().forecast_sequences(tiles, [index], 5)["steps"][0] for index in (3, 0)]
    assert torch.equal(together[[3, 0]], torch.stack(alone))
    assert not torch.equal(*together[0])
    other = nowcaster(seed=1).forecast_sequences(tiles, [0], 5)["steps"]
    assert not torch.equal(other, together[:1])


def test_other_quantities_are_refused(tmp_path, capsys):
    with pytest.raises(InputError, match=r"baselines sprog need rain in mm/h .* but VIL is in VIL byte"):
        nowcaster(["sprog"], VIL)
    assert nowcaster([], VIL).forecast(frames_in_dbz()) == {}
    with pytest.raises(SystemExit, match="2"):
        sample_batch.main(["--baselines", "persistence", "steps", "--out", str(tmp_path / "samples")])
    assert "baselines steps need rain" in capsys.readouterr().err
    assert not (tmp_path / "samples").exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(steps, "has", lambda package: package != "cv2")
    with pytest.raises(InputError, match=r"baselines steps need pysteps and OpenCV, .* pip install pysteps opencv"):
        ForecastSettings(baselines=("advection", "steps"))
    assert ForecastSettings().baselines == ("advection", "persistence")


@pytest.fixture
def folder(tmp_path):
    """Frames of reflectivity: training, validation and 3 test sequences."""
    from tests.dataset.archive import Archive

    (tmp_path / "radar").mkdir()
    archive = Archive(tmp_path / "radar").configure(range=[0, 90], units="dBZ", scale=1, thresholds=[20, 30, 35])
    for number, frame in enumerate(storms(frames=48)):
        archive.store(number, frame[0])
    return archive.folder


@pytest.mark.slow
@pytest.mark.parametrize(("size", "sequences"), [("--img_size 48 64", 3), ("--crop 32", 12)])
def test_an_evaluation_scores_them_beside_the_model(size, sequences, folder, tmp_path, monkeypatch):
    windows = []
    monkeypatch.setitem(steps.METHODS, "steps", lambda window: windows.append(window) or original(window))
    original = steps.steps
    words = f"--dataset frames --data_path {folder} {size} --num_workers 0 --cases 0"
    words += " --frames_in 5 --frames_out 3 --seq_len 8 --backbone advection --eval --members 2 --baselines steps sprog"
    found = []
    for batch in ("2", "12"):
        run.main([*words.split(), "--forecast_batch", batch, "--exp_dir", str(tmp_path / batch)])
        results = tmp_path / batch / "Singleadvection_frames" / "evaluation_advection"
        found.append(json.loads((results / "metrics.json").read_text()))
    assert found[0]["sequences"] == sequences
    complete = 3 + found[0]["validation_sequences"]  # the latter are of different times
    assert len(windows) == 2 * len({window.seed for window in windows}) == 2 * complete
    scores, others = (one["scores"] for one in found)
    assert list(scores) == ["advection", "steps", "sprog"]
    for name in ("steps", "sprog"):
        assert scores[name]["crps_per_lead"] == pytest.approx(others[name]["crps_per_lead"], rel=1e-6)
        assert scores[name]["missing_forecast_pixels"] == 0
    assert scores["steps"]["spread"] > 0
    assert "pm_mean" in scores["steps"]
    assert scores["steps"]["csi_warning"] == others["steps"]["csi_warning"] > scores["steps"]["csi"]
    assert "steps (ensemble mean)" in (results / "lead_time.csv").read_text()
    assert "sprog" in (results / "report.html").read_text()
