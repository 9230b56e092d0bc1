"""Evaluations that are killed or stopped again and again end with the scores of the one that was left alone."""

import json
import random
import signal
from dataclasses import replace

import pytest
import torch

from tests.chaos.lives import Life, die_at
from tests.tiny import arguments, tiny_architecture
from utils.preemption import PREEMPTED, SIGNALS
from utils.weights import save_weights

pytestmark = pytest.mark.slow

RUN = "Diffsimvp_sevir"
CALLS = 30  # that flush, rename or make a folder, of some 50 in an evaluation


@pytest.fixture
def evaluation(storm_folder, tmp_path):
    """How to evaluate a tiny DiffCast, one sequence to a part."""
    weights = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    architecture = replace(
        tiny_architecture("simvp", use_diff=True),
        backbone_options={"spatial_width": 8, "translator_width": 16, "translator_depth": 2},
    )
    save_weights(weights, architecture.build().state_dict(), {"architecture": architecture.to_metadata()})

    def command(exp_dir, *more):
        words = ["--use_diff", "--eval", "--ckpt_milestone", str(weights), "--forecast_batch", "1", "--cases", "0"]
        return arguments(storm_folder, exp_dir, *words, *more)

    return command


def scores(exp_dir):
    return json.loads((exp_dir / RUN / "evaluation_tiny" / "metrics.json").read_text())["scores"]


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.chaos)])
def test_killed_evaluations_lose_nothing(evaluation, tmp_path, kills):
    log, draw, deaths, evaluations = tmp_path / "log", random.Random(kills), 0, 0
    with Life(evaluation(tmp_path / "undisturbed"), log) as life:
        assert life.wait(120), life.told()
        assert life.statuses == [0], life.told()
    while deaths < kills:
        exp_dir = tmp_path / str(evaluations)
        ended = False
        while not ended:
            prepare = (die_at, draw.randint(1, CALLS), False) if deaths < kills else ()
            with Life(evaluation(exp_dir), log, prepare=prepare) as life:
                assert life.wait(120), life.told()
            ended = life.statuses == [0]
            assert ended or life.statuses == [-signal.SIGKILL], life.told()
            deaths += not ended
        assert scores(exp_dir) == scores(tmp_path / "undisturbed")
        evaluations += 1


@pytest.mark.parametrize("number", SIGNALS)
def test_an_evaluation_that_is_asked_to_stop_goes_on_later(evaluation, tmp_path, number):
    endless = ["--sampling_steps", "1000"]
    with Life(evaluation(tmp_path, *endless), tmp_path / "log") as life:
        life.wait_until(lambda: "forecasting 5 of" in life.told())
        life.signal(number)
        assert life.wait(60), life.told()
        assert life.statuses == [PREEMPTED], life.told()
        assert f"stopped after {number.name}; the same command continues" in life.told()
        assert "Traceback" not in life.told()
    assert not list((tmp_path / RUN).glob("evaluation_tiny*/metrics.json"))
    with Life(evaluation(tmp_path), tmp_path / "log") as life:
        assert life.wait(120), life.told()
        assert life.statuses == [0], life.told()
    assert list((tmp_path / RUN).glob("evaluation_tiny*/metrics.json"))
