"""The benchmark for a GPU runs at toy size on a processor, and keeps what it has measured whatever happens."""

import json
import time

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import sections as gpu_sections
from benchmarks.gpu import training
from benchmarks.gpu.bench import TOY, Bench
from benchmarks.gpu.forecasts import in_batches, parts
from benchmarks.gpu.training import repeated, trained
from diffcast.forecaster import place
from tests.golden.comparisons import compare, comparisons

CPU = torch.device("cpu")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A processor, few storms, and all the time in the world."""
    monkeypatch.setattr(training, "EVENTS", 6)
    return Bench(TOY, tmp_path, time.time() + 1000)


@pytest.mark.slow
def test_a_section_that_is_stopped_or_skipped_leaves_the_others(tmp_path, monkeypatch, capsys):
    device = gpu.SECTIONS["device"]
    sections = {"device": device, "golden": device._replace(most=0.1), "forecasts": device._replace(least=1e6)}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    file = tmp_path / "gpu.json"
    with pytest.raises(SystemExit, match="1"):
        gpu.main(["--toy", "--out", str(file)])
    found = json.loads(file.read_text())["sections"]
    assert [found[name]["status"] for name in sections] == ["done", "failed", "skipped"]
    assert found["golden"]["reason"] == "stopped after 0 s"
    assert "of the budget" in found["forecasts"]["reason"]
    assert {"case": "torch", "value": torch.__version__} in found["device"]["rows"]
    assert torch.__version__ in capsys.readouterr().out


def test_a_case_that_fails_is_told_and_leaves_the_others(bench, monkeypatch, tmp_path):
    def fail() -> dict:
        raise RuntimeError("out of memory")

    cases = [("bad", 1, fail), ("good", 1, lambda: {"s": 1.0}), ("long", 1e6, fail)]
    monkeypatch.setitem(gpu_sections.SECTIONS, "device", lambda _: iter(cases))
    assert not gpu_sections.run("device", bench, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text()) == [
        {"case": "bad", "failed": "out of memory"},
        {"case": "good", "s": 1.0},
        {"case": "long", "skipped": "no time left"},
    ]


@pytest.mark.parametrize("name", ["ConvGRU", "LocalResidual", "sampling, SimVP"])
def test_outputs_are_those_of_the_official_models(name):
    row = compare(dict(comparisons(CPU))[name])
    assert 0 < row["difference"] <= row["tolerance"]
    assert "failed" not in row


def test_another_output_is_told():
    (ours, expected, tolerance), *_ = dict(comparisons(CPU))["ConvGRU"]().values()
    assert compare(lambda: {"forecast": (ours + 1, expected, tolerance)})["failed"] == "beyond its tolerance"
    assert compare(lambda: {"forecast": (ours * torch.nan, expected, tolerance)})["failed"] == "beyond its tolerance"


@pytest.mark.slow
def test_training_tells_speed_and_what_it_waits_for(bench):
    row = trained(bench, "simvp", "--mixed_precision", "no")
    assert row["sequences/s"] == pytest.approx(2 * row["steps/s"])
    assert row["TFLOP/s"] == pytest.approx(row["TFLOP/step"] * row["steps/s"])
    assert row["waits for data"] + row["waits for device"] + row["launching"] == pytest.approx(1)
    assert min(row.values()) > 0


@pytest.mark.slow
def test_trainings_and_forecasts_repeat_themselves(bench):
    assert repeated(bench, deterministic=False) == {
        "again, weights": 0,
        "again, loss": "equal",
        "resumed, weights": 0,
        "resumed, loss": "equal",
    }
    assert in_batches(bench, "float32")["forecasts"] < 1e-4


def test_parts_of_a_forecast_are_timed(bench):
    row = parts(bench, place(bench.model("phydnet"), CPU), 2, "bfloat16")
    assert list(row) == ["members", "s", "backbone", "GlobalMotion", "8 evaluations"]
    assert min(row.values()) > 0
