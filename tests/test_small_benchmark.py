"""The small benchmark and the choices of training run at toy size, compare what they should, and repeat nothing."""

import json
import shutil

import pytest

from benchmarks import choices, skill, skill_results
from utils.errors import InputError
from utils.report import bootstrap

MODEL = "--backbone convgru --backbone_options dims=[8,8] kernel_sizes=[3,3] stem_dim=4 --dim 8 --dim_mults 1 2"
SIZES = "--img_size 16 --num_workers 0 --batch_size 4 --epochs 0 --valid_every 9 --members 2 --dress"
COSTS = "--sampler dpm --sampling_steps 2 --eval_sequences 4 --cases 0"
OPTIONS = ["--backbones", "convgru", "--seeds", "5", "--jobs", "1"]


@pytest.fixture(scope="module")
def folder(storm_folder, tmp_path_factory):
    """The folder of results of a benchmark that has run."""
    path = tmp_path_factory.mktemp("benchmark")
    storms = shutil.copytree(storm_folder, path / "storms")
    (path / "mini_convgru.args").write_text(f"--data_path {storms} {MODEL} {SIZES} {COSTS} --exp_dir {path / 'runs'}")
    small = {
        skill: {
            "RUNS": path / "runs",
            "PRESETS": path,
            "STORMS": storms,
            "DATA": {"size": 16},
            "BUDGETS": {"convgru": skill.Budget(start=1, diffcast=2, alone=3)},
        },
        choices: {
            "REPLICATES": 20,
            "CHOICES": {
                "scratch": choices.Choice("other", 1, "--diffusion_weight 0.9", start=False, frozen=False),
                "sampled": choices.Choice("other", 2, "--previous_residual sampled"),
            },
        },
        skill_results: {"REPLICATES": 20},
        bootstrap: {"REPLICATES": 20},
    }
    with pytest.MonkeyPatch.context() as patch:
        for module, values in small.items():
            for name, value in values.items():
                patch.setattr(module, name, value)
        skill.main(OPTIONS)
        yield path / "runs" / "results"


def test_results_compare_diffcast_with_all_others(folder):
    results = json.loads((folder / "results.json").read_text())["backbones"]["convgru"]["5"]
    assert all(seconds > 0 for seconds in results["cpu_seconds"].values())
    scores = {name: found["crps"] for name, found in results["scores"].items()}
    assert len(set(scores.values())) == len(scores) == 8
    for name, found in results["difference_to"].items():
        assert found["crps"]["value"] == pytest.approx(scores["DiffCast"] - scores[name], abs=1e-6)
        assert found["crps"]["low"] <= found["crps"]["value"] <= found["crps"]["high"]
    assert f"| {scores['DiffCast']:.4f} |" in (folder / "results.md").read_text()
    assert "backbone alone, dressed" in (folder / "report_convgru.html").read_text()
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("crps.png", "csi.png", "spectra.png"))


def test_what_is_finished_is_not_done_again_and_compared_with_what_is_stored(folder, monkeypatch, capsys):
    stored = json.loads((folder / "results.json").read_text())
    differences = stored["backbones"]["convgru"]["5"]["difference_to"]
    differences["backbone alone"]["crps"] |= {"low": 1, "high": 2}
    differences["its backbone, dressed"]["crps"] |= {"low": None, "high": None}
    monkeypatch.setattr(skill_results, "STORED", folder / "stored.json")
    skill_results.STORED.write_text(json.dumps(stored))
    capsys.readouterr()
    skill.main(OPTIONS)
    out = capsys.readouterr().out
    assert "started" not in out
    for label, within in {"its backbone": "yes", "backbone alone": "**no**", "its backbone, dressed": ""}.items():
        (line,) = [line for line in out.splitlines() if f"| {label} | CRPS |" in line]
        assert line.endswith(f"| {within} |")


def test_choices_differ_from_the_recommended_training_in_what_they_say(folder, capsys):
    choices.main(["--seed", "5", "--jobs", "1"])
    rows = json.loads((folder / "choices.json").read_text())["rows"]
    assert list(rows) == ["recommended", "scratch", "sampled"]
    assert "--freeze_backbone" in rows["sampled"]["command"]
    assert "--backbone_ckpt" not in rows["scratch"]["command"]
    assert "--freeze_backbone" not in rows["scratch"]["command"]
    crps = {name: row["scores"]["crps"] for name, row in rows.items()}
    assert len(set(crps.values())) == 3
    for name in ("scratch", "sampled"):
        assert rows[name]["minus_recommended"]["crps"]["value"] == pytest.approx(
            crps[name] - crps["recommended"], abs=1e-7
        )
    out = capsys.readouterr().out
    assert "diffcast_5: started" not in out
    assert f"| {crps['sampled']:.4f} |" in out


def test_the_small_benchmark_names_the_log_of_what_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(skill, "RUNS", tmp_path)
    runner = skill.Runner()
    with pytest.raises(InputError, match=r"broken ended with status 3: see .*broken\.log"):
        runner.run("broken", ["-c", "raise SystemExit(3)"], tmp_path / "never", tmp_path / "cost.json")
    assert json.loads((tmp_path / "cost.json").read_text())["cpu_seconds"] > 0
    runner.run("after", ["-c", "open('after', 'w')"], tmp_path / "after")
    assert not (tmp_path / "after.log").exists()  # nothing is started any more


def test_processor_time_of_attempts_adds_up(tmp_path):
    for seconds in (2.5, 4):
        skill.add_cost(tmp_path / "cost.json", seconds)
    assert json.loads((tmp_path / "cost.json").read_text()) == {"cpu_seconds": 6.5}
