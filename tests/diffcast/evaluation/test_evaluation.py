"""The evaluation loop: every sequence once, the same numbers for any number of processes."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import run
from dataset.source import VIL
from dataset.synthetic.writer import write_sevir
from diffcast.evaluation.loop import EvaluationSettings, evaluate
from diffcast.evaluation.parts import Parts
from diffcast.forecasting.dressed import Dressed
from models import Persistence
from tests.tiny import InMemory, arguments, run_py
from utils import files


@pytest.fixture(scope="module")
def weights(storm_folder, tmp_path_factory):
    exp_dir = tmp_path_factory.mktemp("exps")
    run.main(arguments(storm_folder, exp_dir, *["--use_diff", "--epochs", "0", "--training_steps", "3", "--no_eval"]))
    return str(exp_dir / "Diffsimvp_sevir/checkpoints/best.safetensors")


def scores(folder):
    return json.loads((folder / "Diffsimvp_sevir/evaluation_best/metrics.json").read_text())


def flat(value, name=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{name}/{key}").items()}
    return {name: value}


@pytest.mark.slow
@pytest.mark.parametrize("sequences", ["9", "1"], ids=["that do not divide", "fewer than processes"])
def test_two_processes_give_the_scores_of_one(weights, storm_folder, tmp_path, sequences):
    words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--members", "2", "--eval_sequences", sequences]
    results = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        done = run_py(*arguments(storm_folder, folder, *words, "--forecast_batch", "2"), processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(scores(folder))
    one, two = results
    assert one["sequences"] == int(sequences)
    assert len(flat(one["scores"])) > 1000
    first, second = flat(one["scores"]), flat(two["scores"])
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == (value if value is None else pytest.approx(value, rel=1e-5, abs=1e-7)), name
    whole = {name for name, value in first.items() if isinstance(value, int)}
    assert {name: second[name] for name in whole} == {name: first[name] for name in whole}
    counts = one["scores"]["persistence"]["counts"]
    assert sum(counts[kind][0][0] for kind in counts) == int(sequences) * 16 * 16


def test_a_killed_evaluation_goes_on_with_the_same_numbers(weights, storm_folder, tmp_path, monkeypatch):
    words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--forecast_batch", "1", "--members", "2"]
    words += ["--cases", "0", "--sampling_steps", "1"]
    run.main(arguments(storm_folder, tmp_path / "whole", *words))

    save, saved = Parts.save, []

    def save_or_die(self, number, part):
        if len(saved) == limit:
            raise KeyboardInterrupt
        save(self, number, part)
        saved.append((self.folder.name, number))

    monkeypatch.setattr(Parts, "save", save_or_die)
    for limit in (1, 4):  # in the validation, then in the test
        with pytest.raises(SystemExit):
            run.main(arguments(storm_folder, tmp_path / "killed", *words))
        assert len(saved) == limit
    assert not (tmp_path / "killed/Diffsimvp_sevir/evaluation_best/metrics.json").exists()
    limit = None
    run.main(arguments(storm_folder, tmp_path / "killed", *words))
    assert saved == [*(("validation", number) for number in range(2)), *(("sequences", number) for number in range(5))]
    assert scores(tmp_path / "killed")["scores"] == scores(tmp_path / "whole")["scores"]


@pytest.mark.slow
def test_evaluations_with_other_settings_at_once_keep_apart(weights, storm_folder, tmp_path, monkeypatch, capsys):
    words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--forecast_batch", "1", "--eval_sequences", "3"]

    def evaluated(exp_dir, steps):
        run.main(arguments(storm_folder, exp_dir, *words, "--cases", "0", "--sampling_steps", steps))

    for steps in ("1", "2"):
        evaluated(tmp_path / steps, steps)
    alone = [scores(tmp_path / steps)["scores"] for steps in ("1", "2")]
    save = Parts.save

    def save_and_let_another_begin(self, number, part):
        save(self, number, part)
        monkeypatch.setattr(Parts, "save", save)
        evaluated(tmp_path / "both", "2")

    monkeypatch.setattr(Parts, "save", save_and_let_another_begin)
    evaluated(tmp_path / "both", "1")
    second = tmp_path / "both/Diffsimvp_sevir/evaluation_best_2/metrics.json"
    assert [scores(tmp_path / "both")["scores"], json.loads(second.read_text())["scores"]] == alone
    capsys.readouterr()
    evaluated(tmp_path / "both", "2")
    out = capsys.readouterr().out
    assert "evaluation_best holds other results (sampling_steps 1 / 2); these go to evaluation_best_2" in out
    assert "3 of 3 parts were scored before" in out
    assert len(list((tmp_path / "both/Diffsimvp_sevir").iterdir())) == 2


def test_the_same_evaluation_twice_at_once_is_refused(weights, storm_folder, tmp_path, monkeypatch, capsys):
    words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--eval_sequences", "1", "--cases", "0"]
    save, told = Parts.save, []

    def begin_again(self, number, part):
        with pytest.raises(SystemExit, match="2"):
            run.main(arguments(storm_folder, tmp_path, *words))
        told.append(capsys.readouterr().err)
        save(self, number, part)

    monkeypatch.setattr(Parts, "save", begin_again)
    monkeypatch.setattr(files, "LOCK_PATIENCE", 0.1)
    run.main(arguments(storm_folder, tmp_path, *words))
    assert len(told) == 1
    assert re.search(r"error: another run is at work in .*evaluation_best; wait for its end or stop it\.", told[0])


def test_data_of_the_same_names_are_other_data(weights, tmp_path, monkeypatch):
    words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--eval_sequences", "2", "--cases", "0"]
    for seed in (0, 1):
        write_sevir(tmp_path / f"seed {seed}", events=3, size=16, resolution=16, seed=seed)
        (tmp_path / "data").unlink(missing_ok=True)
        (tmp_path / "data").symlink_to(tmp_path / f"seed {seed}")
        run.main(arguments(tmp_path / "data", tmp_path, *words))
    assert {path.name for path in (tmp_path / "Diffsimvp_sevir").iterdir()} == {"evaluation_best", "evaluation_best_2"}


@pytest.mark.slow
def test_results_tell_where_they_come_from(weights, storm_folder, tmp_path, charts):
    words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--members", "3", "--dress", "--cases", "2"]
    run.main(arguments(storm_folder, tmp_path, *words))
    found = scores(tmp_path)
    assert found["name"] == "diffcast_simvp"
    assert found["checkpoint"]["sha256"] == hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    assert found["about"]["command"].startswith("python ")
    assert list(found["scores"]) == ["diffcast_simvp", "trend", "dressed", "advection", "persistence"]
    assert found["scores"]["dressed"]["spread"] > 0
    best, worst = found["cases"]
    assert (best["why"], worst["why"]) == ("best", "worst")
    assert best["crps"] <= found["scores"]["diffcast_simvp"]["crps"] <= worst["crps"]
    folder = tmp_path / "Diffsimvp_sevir/evaluation_best"
    for case in found["cases"]:
        assert case["pictures"]
        assert all((folder / name).is_file() for name in case["pictures"])
    report = (folder / "report.html").read_text()
    assert best["id"] in report
    assert "5 sequences of synthetic storms" in report
    assert report.count("<svg ") > 5
    assert "sevir synthetic" not in report
    assert (folder / "lead_time.csv").read_text().splitlines()[1].startswith("synthetic storms,diffcast_simvp,5.0,")


@pytest.mark.slow
def test_cases_are_chosen_among_sequences_with_rain(weights, storm_folder, tmp_path, monkeypatch):
    crps, rain = [0.1, 0.2, 0.3, 0.4, 0.5], [0.0, 0.06, 0.9, 0.2, 0.04]
    monkeypatch.setattr(Parts, "cases", lambda self, number, name: map(np.array, (range(5), crps, rain)))
    words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--cases", "3"]
    run.main(arguments(storm_folder, tmp_path / "rain", *words))
    found = scores(tmp_path / "rain")["cases"]
    assert [(case["why"], case["crps"]) for case in found] == [("best", 0.2), ("median", 0.3), ("worst", 0.4)]
    rain[1:4] = [0.0, 0.01, 0.02]
    run.main(arguments(storm_folder, tmp_path / "dry", *words))
    found = scores(tmp_path / "dry")["cases"]
    assert [case["crps"] for case in found] == [0.1, 0.3, 0.5]


def test_members_differ_and_seeds_repeat(weights, storm_folder, tmp_path):
    found = []
    for name, seed in {"a": "0", "b": "0", "c": "1"}.items():
        words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--members", "2", "--seed", seed]
        run.main(arguments(storm_folder, tmp_path / name, *words, "--eval_sequences", "2", "--cases", "0"))
        found.append(scores(tmp_path / name)["scores"]["diffcast_simvp"])
    assert found[0] == found[1] != found[2]
    assert found[0]["spread"] > 0


def dressed_scores(folder, test, valid):
    """Scores of dressed persistence.

    Two of its four members reach threshold 133 everywhere, and three on the right. Of `test` and `valid`, pairs of 0
    or 1 by sequence, the left and right half do.
    """
    persistence = Persistence((1, 4, 4), 1, 1)
    residuals = torch.zeros(4, 1, 1, 4, 4)
    residuals[:2] = residuals[2, ..., 2:] = 0.3
    settings = EvaluationSettings(members=4, baselines=(), cases=0, num_workers=0)
    splits = []
    for halves in (test, valid):
        future = 0.3 + 0.3 * torch.tensor(halves).repeat_interleave(2, -1).expand(-1, 4, 4)
        splits.append(InMemory(torch.stack([torch.full_like(future, 0.3), future], dim=1)[:, :, None]))
        splits[-1].source = VIL
    dressed = Dressed(persistence, residuals)
    return evaluate(Accelerator(cpu=True), persistence, splits[0], settings, folder, "p", {}, dressed, splits[1])


def test_the_probability_of_warnings_comes_from_the_validation_split(tmp_path):
    both, right = [[[1.0, 1.0]]], [[[0.0, 1.0]]]
    expected = {"both": (0.25, 0.5), "right": (0.75, 1.0)}
    for name, valid in {"both": both, "right": right}.items():
        found = dressed_scores(tmp_path / name, right, valid)["dressed"]
        assert (found["warning_probability"][2], found["csi_warning_per_threshold"][2]) == expected[name]


def test_other_validation_sequences_are_another_evaluation(tmp_path):
    both, right = [[[1.0, 1.0]]], [[[0.0, 1.0]]]
    for valid in (both, right):
        dressed_scores(tmp_path / "evaluation", right, valid)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation", "evaluation_2"}


def test_data_without_a_validation_split_leave_out_the_warnings(weights, tmp_path, capsys):
    write_sevir(tmp_path / "data", events=3, size=16, resolution=16)
    catalog = tmp_path / "data/CATALOG.csv"
    header, train, _, test = catalog.read_text().splitlines()
    catalog.write_text("\n".join([header, train, test]))
    words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--members", "2", "--eval_sequences", "2"]
    run.main(arguments(tmp_path / "data", tmp_path, *words, "--cases", "0"))
    assert "csi_warning of ensembles is left out, as it needs a validation split: " in capsys.readouterr().out
    found = scores(tmp_path)["scores"]
    assert "csi_warning" not in found["diffcast_simvp"]
    assert found["trend"]["csi_warning"] == found["trend"]["csi"]
