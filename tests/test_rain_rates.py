"""A run on rain rates that the networks see in dBZ, from files in mm/h to scores in mm/h."""

import json
from datetime import datetime, timedelta

import numpy as np
import pytest
import yaml
from scipy.ndimage import gaussian_filter

import run
from tests.tiny import arguments
from utils.weights import load_metadata

START, STEP = datetime(2023, 5, 1), timedelta(minutes=5)
WORDS = ("--dataset", "frames", "--use_diff", "--residual_scale", "auto", "--members", "2", "--training_steps", "3")


@pytest.fixture(scope="module")
def rain(tmp_path_factory):
    """A folder of 100 frames of rain rates in mm/h, and the frames `(T, H, W)`."""
    folder = tmp_path_factory.mktemp("rain")
    noise = np.random.default_rng(0).normal(size=(100, 16, 16))
    wet = gaussian_filter(noise, (3, 2, 2), mode="wrap")
    rates = np.float32(np.exp(1.5 * wet / wet.std()).clip(0, 60).round(2))
    rates[rates < 0.2] = 0
    for number, frame in enumerate(rates):
        np.save(folder / f"{START + number * STEP:%Y%m%d%H%M}.npy", frame)
    described = {
        **{"pattern": "%Y%m%d%H%M.npy", "interval": 5, "extent_km": 16, "units": "mm/h", "stride": 3},
        **{"range": [0, 60], "thresholds": [0.5, 2, 10], "transform": "dbz"},
        "split": {"valid_from": START + 40 * STEP, "test_from": START + 70 * STEP},
    }
    (folder / "frames.yaml").write_text(yaml.safe_dump(described))
    return folder, rates


@pytest.fixture(scope="module")
def finished(rain, tmp_path_factory):
    exp_dir = tmp_path_factory.mktemp("exps")
    run.main(arguments(rain[0], exp_dir, *WORDS))
    return exp_dir / "Diffsimvp_frames"


def levels(rates):
    return np.log1p(200 * rates.astype(float) ** 1.6) / np.log1p(200 * 60**1.6)


def windows(rates, first, stop):
    """Sequences of 25 frames, every third one."""
    return np.stack([rates[begin : begin + 25] for begin in range(first, stop - 24, 3)])


def test_scores_are_those_of_rain_rates(rain, finished):
    metrics = json.loads((finished / "evaluation_best/metrics.json").read_text())
    assert metrics["source"]["transform"] == {"a": 200, "b": 1.6, "rate": 1}
    sequences = windows(rain[1], 70, 100)
    assert metrics["sequences"] == len(sequences)
    last, future = sequences[:, 4:5], sequences[:, 5:]
    found = metrics["scores"]["persistence"]
    assert found["mae"] == pytest.approx(np.abs(future - last).mean(), rel=1e-3)
    assert 60 * found["crps"] == pytest.approx(found["mae"], rel=1e-3)
    assert found["mse"] == pytest.approx(np.square(future - last).mean(), rel=1e-3)
    reached = [(future >= threshold).sum() for threshold in (0.5, 2, 10)]
    assert (np.array(found["counts"]["hits"]) + found["counts"]["misses"]).sum(axis=1).tolist() == reached
    assert np.isfinite(metrics["scores"]["diffcast_simvp"]["crps"])


def test_the_measured_residual_scale_belongs_to_the_weights(rain, finished):
    sequences = 2 * levels(windows(rain[1], 0, 40))
    expected = (sequences[:, 5:] - sequences[:, 4:5]).std()
    scales = [
        load_metadata(weights)["architecture"]["residual_scale"]
        for weights in (finished / "checkpoints").glob("**/*.safetensors")
    ]
    assert scales == [pytest.approx(expected, rel=0.005)] * 2
    assert yaml.safe_load((finished / "params.yaml").read_text())["residual_scale"] == scales[0]
    assert f"--residual_scale auto: {scales[0]:g}, the standard deviation" in (finished / "run.log").read_text()


def test_a_resumed_training_and_an_evaluation_take_the_scale_of_the_checkpoint(rain, finished, monkeypatch):
    monkeypatch.setattr(run, "measured_scale", None)  # measuring again would fail
    words = arguments(rain[0], finished.parent, *WORDS)
    run.main([*words, "--resume", "--epochs", "0", "--training_steps", "5", "--no_eval"])
    before = load_metadata(finished / "checkpoints/ckpt-3/weights.safetensors")["architecture"]
    assert load_metadata(finished / "checkpoints/ckpt-5/weights.safetensors")["architecture"] == before
    run.main([*words, "--eval", "--ckpt_milestone", "5"])


def test_a_dry_run_says_what_will_be_measured(rain, tmp_path, capsys):
    run.main(arguments(rain[0], tmp_path, *WORDS, "--dry_run"))
    told = capsys.readouterr()
    assert "measured before the training, from the residual of persistence" in told.out + told.err


def test_weights_of_rates_do_not_forecast_a_linear_scale(rain, finished, tmp_path, capsys):
    folder, _ = rain
    described = yaml.safe_load((folder / "frames.yaml").read_text())
    del described["transform"]
    (tmp_path / "frames.yaml").write_text(yaml.safe_dump(described | {"folder": str(folder)}))
    weights = str(finished / "checkpoints/best.safetensors")
    with pytest.raises(SystemExit):
        run.main(arguments(tmp_path, tmp_path, *WORDS[:3], "--eval", "--ckpt_milestone", weights))
    assert "transform {'a': 200.0, 'b': 1.6, 'rate': 1.0} / none" in capsys.readouterr().err
