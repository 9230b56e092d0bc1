"""The precision of trainings and forecasts, by what the device computes in natively."""

import logging

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

import run
from diffcast.precision import forecast_precision, training_precision, warn_if_emulated
from tests.tiny import arguments
from utils.weights import load_metadata

CPU = torch.device("cpu")


@pytest.fixture(params=[False, True], ids=["emulated", "native"])
def native(request, monkeypatch):
    """Whether the processor computes in bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": request.param})
    return request.param


def test_auto_is_bfloat16_where_that_is_native(native):
    assert training_precision("auto", CPU) == ("bf16" if native else "no")
    assert forecast_precision("auto", CPU) == (torch.bfloat16 if native else torch.float32)


def test_a_precision_given_by_name_is_taken(native):
    assert [training_precision(name, CPU) for name in ("no", "bf16")] == ["no", "bf16"]
    assert [forecast_precision(name, CPU) for name in ("float32", "bfloat16")] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("wanted", ["no", "float32", "bf16", "bfloat16"])
def test_only_emulated_bfloat16_is_warned_of(native, wanted, caplog):
    caplog.set_level(logging.INFO)
    warn_if_emulated("--mixed_precision", wanted, CPU)
    slow = wanted.startswith("b") and not native
    assert [record.levelname for record in caplog.records] == ["WARNING"] * slow
    assert ("2 to 8 times as long" in caplog.text) == slow


def test_what_is_recorded_is_what_was_computed_in(native, storm_folder, tmp_path, monkeypatch):
    name = "bf16" if native else "no"
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # which holds the precision of earlier tests
    run.main(arguments(storm_folder, tmp_path, "--mixed_precision", "auto", "--no_eval"))
    folder = tmp_path / "Singlesimvp_sevir"
    assert yaml.safe_load((folder / "params.yaml").read_text())["mixed_precision"] == name
    assert load_metadata(folder / "checkpoints" / "best.safetensors")["course"]["mixed_precision"] == name
    log = (folder / "run.log").read_text()
    assert f"--mixed_precision {name}, from the beginning" in log
    assert "as long" not in log
