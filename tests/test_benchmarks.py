"""Each benchmark runs at toy size, writes what it promises, and its statistics are right."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks import data, quality, training
from dataset import build_dataset
from tests.tiny import BACKBONES, tiny_architecture
from utils.checkpoint import save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A DiffCast that has learnt nothing."""
    torch.manual_seed(0)
    architecture = tiny_architecture("simvp", use_diff=True)
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_weights(path, architecture.build().state_dict(), {"architecture": architecture.to_metadata()})
    return path


@pytest.fixture
def judge(weights, storm_folder, tmp_path):
    """Run the quality benchmark on some settings; returns its JSON."""

    def run(*settings, members=2, file=tmp_path / "quality.json"):
        numbers = ["--sequences", "3", "--members", str(members), "--forecast_batch", "4", "--json", str(file)]
        paths = ["--ckpt_milestone", str(weights), "--data_path", str(storm_folder)]
        quality.main([*paths, *numbers, "--settings", *settings])
        return json.loads(file.read_text())

    return run


class TestQuality:
    def test_settings_are_scored_and_compared_with_the_first(self, judge, capsys):
        result = judge("ddim:3", "dpm:2", "dpm:2:bfloat16")
        rows = result["settings"]
        assert list(rows) == ["ddim:3:float32", "dpm:2:float32", "dpm:2:bfloat16"]
        assert result["reference"] == "ddim:3:float32"
        assert [row["evaluations"] for row in rows.values()] == [12, 8, 8]
        assert len({row["scores"]["crps"] for row in rows.values()}) == 3
        reference, fast = rows["ddim:3:float32"], rows["dpm:2:float32"]
        assert {d["value"] for d in reference["differences"].values()} <= {0, None}
        assert set(fast["scores"]) == set(fast["differences"]) == set(quality.SCORES)
        ratio = fast["scores"]["crps"] / reference["scores"]["crps"]
        assert fast["differences"]["crps"]["value"] == pytest.approx(ratio - 1)
        assert fast["differences"]["csi"]["value"] == fast["scores"]["csi"] - reference["scores"]["csi"]
        assert {name for name, d in fast["differences"].items() if "within" in d} == set(quality.BARS)
        assert "within the bars" in capsys.readouterr().out

    def test_measured_settings_are_not_repeated(self, judge):
        first = judge("ddim:3", "dpm:2")["settings"]
        again = judge("dpm:2", "ddim:2")
        assert again["reference"] == "dpm:2:float32"
        assert list(again["settings"]) == ["ddim:3:float32", "dpm:2:float32", "ddim:2:float32"]
        for name, row in first.items():
            assert again["settings"][name]["seconds"] == row["seconds"]
        new, old = (again["settings"][name] for name in ("dpm:2:float32", "ddim:3:float32"))
        assert old["differences"]["csi"]["value"] == old["scores"]["csi"] - new["scores"]["csi"] != 0

    def test_results_of_another_measurement_are_not_mixed_in(self, judge, capsys):
        judge("ddim:1")
        with pytest.raises(SystemExit, match="2"):
            judge("ddim:1", members=3)
        assert "another number of members" in capsys.readouterr().err

    @pytest.mark.parametrize("setting", ["dpm", "ddpm:10", "dpm:10:float16", "dpm:1001", "dpm:0"])
    def test_an_impossible_setting_is_refused_before_anything_is_measured(self, judge, setting, capsys, tmp_path):
        with pytest.raises(SystemExit, match="2"):
            judge("ddim:1", setting)
        assert setting in capsys.readouterr().err
        assert not (tmp_path / "quality.json").exists()

    def test_scores_without_a_sequence_are_those_of_the_others(self, storm_folder):
        torch.manual_seed(0)
        dataset = build_dataset("sevir", "test", storm_folder, 16)
        target = torch.stack([dataset[i][5:] for i in (0, 4, 9)])
        forecast = (target[:, None] + 0.2 * torch.randn(3, 2, *target.shape[1:])).clamp(0, 1)
        scores, others = (quality.new_scores(dataset, 20, 2) for _ in range(2))
        left_out = quality.leave_one_out(scores, scores.update(forecast, target))
        others.update(forecast[[0, 2]], target[[0, 2]])
        for name, expected in quality.selected(others).items():
            assert left_out[name][1] == pytest.approx(expected, rel=1e-9, nan_ok=True)

    def test_jackknife_error_of_a_mean_is_the_standard_error(self):
        values = np.random.default_rng(0).normal(size=20)
        left_out = (values.sum() - values) / 19
        assert quality.jackknife_error(left_out) == pytest.approx(values.std(ddof=1) / math.sqrt(20))

    @pytest.mark.parametrize(
        ("difference", "error", "answer"),
        [
            (-0.01, 0.004, "yes"),
            (0.01, 0.006, "open"),
            (-0.03, 0.006, "open"),
            (0.03, 0.004, "no"),
            (0.0, np.nan, "open"),
        ],
    )
    def test_verdict_widens_a_difference_by_two_standard_errors(self, difference, error, answer):
        assert quality.verdict(difference, error, 0.02) == answer


def test_training_measures_every_form_against_the_contiguous_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "EVENTS", 6)
    small = [f"{name}={value}" for name, value in BACKBONES["simvp"].items()]
    sizes = (
        "--img_size 16 --dim 8 --dim_mults 1 2 --batch_size 2 --grad_acc_step 2 --num_workers 0 --steps 1 --rounds 1"
    )
    file = tmp_path / "training.json"
    training.main([*sizes.split(), "--use_diff", "--json", str(file), "--backbone_options", *small])
    result = json.loads(file.read_text())
    assert [row["form"] for row in result["rows"]] == [
        "float32, contiguous",
        "float32",
        "bfloat16",
        "bfloat16, 2 batches per step",
    ]
    assert result["rows"][0]["speedup"] == 1
    for row, sequences in zip(result["rows"], (2, 2, 2, 4), strict=True):
        assert row["sequences_per_second"] == pytest.approx(sequences / row["step_seconds"]["median"])
        assert 0 < row["waiting_share"] < 1
    assert "waiting for data" in capsys.readouterr().out


def test_training_gives_accumulated_batches_the_gradient_of_their_mean():
    model = tiny_architecture("simvp", use_diff=False).build()
    batches = [(torch.tensor([i]), torch.rand(1, 25, 1, 16, 16)) for i in range(2)]
    run = training.Training(model, training.Form("", True, torch.float32, 2), torch.device("cpu"))
    for batch in batches:
        run.accumulate(*batch)
    frames = torch.cat([frames for _, frames in batches])
    model(*frames.tensor_split([5], dim=1))["loss"].backward()
    for ours, expected in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, atol=1e-6, rtol=1e-4)


def test_data_reads_both_forms_with_and_without_workers(tmp_path, capsys):
    file = tmp_path / "data.json"
    sizes = "--events 4 --size 24 --img_size 16 --batch_size 2 --num_workers 0 1 --seconds 0.05 --rounds 1"
    data.main([*sizes.split(), "--json", str(file)])
    result = json.loads(file.read_text())
    assert [row["num_workers"] for row in result["rows"]] == [0, 1]
    for row in result["rows"]:
        assert row["speedup"] == pytest.approx(row["packed"]["median"] / row["hdf5"]["median"])
    assert "in memory" in capsys.readouterr().out
