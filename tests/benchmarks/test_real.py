"""The benchmark on real radar runs at toy size on generated files, and its frames are what the files say."""

import json
from datetime import datetime, timedelta

import numpy as np
import pytest

from benchmarks.skill import radar, real, trainings
from tests.dataset.test_frames_meteoswiss import COMMENT, write_gif

NETWORK = "--backbone convgru --backbone_options dims=[8,8] kernel_sizes=[3,3] stem_dim=4 --dim 8 --dim_mults 1 2"
DAYS = {
    name: radar.Day(date, f"AQC%y%j%H%M{letter}_00005.801.gif", (316, 1.5))
    for name, date, letter in (("first", "2015-05-15", "F"), ("second", "2016-07-11", "V"))
}


def write_day(folder, day: radar.Day, frames: int) -> None:
    """Write showers that move to the right; the lowest rows are missing."""
    rng = np.random.default_rng(0)
    showers = 100 * np.kron(rng.random((20, 30)) > 0.7, np.ones((32, 32)))
    for number in range(frames):
        classes = np.roll(showers, 8 * number, axis=1)[:, :710]
        classes[-30:] = 255
        time = datetime.fromisoformat(day.date) + number * timedelta(minutes=5)
        path = folder / f"{time:%Y%m%d}" / time.strftime(day.pattern)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gif(path, classes, comment=COMMENT.replace(b"231210000", f"{time:%y%j%H%M}".encode()))


def test_squares_average_linear_reflectivity_of_known_pixels():
    dbz = np.array([[10, 20, 0, np.nan, 5], [-np.inf, 30, np.nan, 0, 5], [1, 1, 1, 1, 1]])
    found = radar.coarse(dbz, 2)
    np.testing.assert_allclose(found, [[10 * np.log10((10 + 100 + 0 + 1000) / 4), np.nan]])
    assert radar.coarse(np.full((2, 2), -np.inf), 2) == -np.inf
    assert radar.storm_frames(1, 24).shape == (1, 49, 24, 24)


def test_a_day_without_files_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        real.main(["--radar", str(tmp_path), "--jobs", "1"])
    assert "holds no file RAD_NL25_RAP_5min_20100826*.h5" in capsys.readouterr().err


@pytest.mark.slow
def test_each_day_is_forecast_by_a_model_of_the_others(tmp_path, monkeypatch, capsys):
    files = tmp_path / "files"
    for day in DAYS.values():
        write_day(files, day, 6)
    preset = tmp_path / "real.args"
    sizes = "--frames_in 2 --frames_out 2 --seq_len 4 --batch_size 2 --valid_every 9 --cases 0 --num_workers 0"
    preset.write_text(f"--dataset frames {NETWORK} {sizes}")
    patches = {
        trainings: {"RUNS": tmp_path / "Exps"},
        radar: {"DAYS": DAYS},
        real: {"DAYS": DAYS, "PRESET": preset, "BASELINES": ("persistence", "steps")}
        | {"ARMS": {"crps": real.Arm("toy", 1, "--objective crps")}, "REPLICATES": 20},
    }
    for module, values in patches.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    words = ["--radar", str(files), "--km", "8", "--seeds", "3", "--jobs", "2"]
    real.main(words)
    folder = tmp_path / "Exps" / "real_8km"
    frame = np.load(folder / "frames" / "201505150000.npy")
    assert set(np.unique(frame[:76, :88])) >= {0, 61}  # the class means 30.44 dBZ, stored in half dBZ
    assert (frame[77:] == 255).all()
    results = json.loads((folder / "results" / "real.json").read_text())
    rows = {"persistence", "steps", "crps", "crps, trend", "crps, dressed"}
    assert {day: set(of_day) for day, of_day in results["scores"]["3"].items()} == dict.fromkeys(DAYS, rows)
    minus, scores = results["minus_steps"]["3"]["crps"], results["scores"]["3"]
    for day in DAYS:
        own = scores[day]["crps"]["crps"] - scores[day]["steps"]["crps"]
        assert minus[day]["value"] == pytest.approx(own, abs=1e-6)
    assert minus["mean"]["value"] == pytest.approx(np.mean([minus[day]["value"] for day in DAYS]))
    capsys.readouterr()
    real.main(words)
    assert "started" not in capsys.readouterr().out
