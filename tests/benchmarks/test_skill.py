"""The small benchmark and the choices of training run at toy size, compare what they should, and repeat nothing."""

import copy
import json
import os
import signal
import threading
import time
from functools import partial

import matplotlib.figure
import pytest

from benchmarks.skill import __main__ as skill
from benchmarks.skill import choices, objectives, trainings
from benchmarks.skill import results as skill_results
from benchmarks.skill.jobs import Runner, run_together
from benchmarks.skill.pictures import draw_results
from diffcast.report import bootstrap
from utils.errors import InputError

MODEL = "--backbone convgru --backbone_options dims=[8,8] kernel_sizes=[3,3] stem_dim=4 --dim 8 --dim_mults 1 2"
SIZES = "--img_size 16 --num_workers 0 --batch_size 4 --valid_every 9 --members 2 --dress"
COSTS = "--sampler dpm --sampling_steps 2 --eval_sequences 4 --cases 0"
OPTIONS = ["--backbones", "convgru", "--seeds", "5", "--jobs", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a benchmark that has run."""
    path = tmp_path_factory.mktemp("benchmark")
    runs, storms = path / "runs", path / "storms"
    (path / "mini_convgru.args").write_text(f"--data_path {storms} {MODEL} {SIZES} {COSTS} --exp_dir {runs}")
    small = {
        trainings: {
            "RUNS": runs,
            "PRESETS": path,
            "STORMS": storms,
            "DATA": {"events": 24, "size": 16, "resolution": 16, "seed": 0},
            "BUDGETS": {"convgru": trainings.Budget(start=1, diffcast=2, alone=3), "simvp": trainings.Budget(1, 1, 1)},
        },
        choices: {
            "REPLICATES": 20,
            "CHOICES": {
                "scratch": choices.Choice("other", 1, "--diffusion_weight 0.9", start=False, frozen=False),
                "scale": choices.Choice("other", 2, "--residual_scale 1.5"),
            },
        },
        objectives: {
            "REPLICATES": 20,
            "ARMS": {
                "diffusion": objectives.Arm("diffusion", 1, samplings=(("dpm", 2), ("ddim", 1))),
                "tuned": objectives.Arm(
                    "then CRPS",
                    1,
                    "--objective crps --sampler ddim --sampling_steps 1",
                    start="diffusion",
                    samplings=(("ddim", 1),),
                ),
                "no_trend": objectives.Arm("no trend", 2, network=objectives.NO_TREND, samplings=(("dpm", 2),)),
            },
            "REFERENCE": ("diffusion", ("dpm", 2)),
        },
        skill_results: {"REPLICATES": 20},
        bootstrap: {"REPLICATES": 20},
    }
    with pytest.MonkeyPatch.context() as patch:
        for module, values in small.items():
            for name, value in values.items():
                patch.setattr(module, name, value)
        skill.main(OPTIONS)
        yield runs


@pytest.fixture
def results(folder):
    """What the benchmark found."""
    return json.loads((folder / "results_convgru_seeds_5" / "results.json").read_text())


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path, tmp_path / "logs")


@pytest.mark.slow
def test_results_compare_diffcast_with_all_others(folder, results):
    found = results["backbones"]["convgru"]["5"]
    assert found["training_steps"] == {"start": 1, "diffcast": 2, "alone": 3}
    assert all(seconds > 0 for seconds in found["cpu_seconds"].values())
    scores = {name: each["crps"] for name, each in found["scores"].items()}
    assert len(set(scores.values())) == len(scores) == 8
    for name, difference in found["difference_to"].items():
        assert difference["crps"]["value"] == pytest.approx(scores["DiffCast"] - scores[name], abs=1e-6)
        assert difference["crps"]["low"] <= difference["crps"]["value"] <= difference["crps"]["high"]
    made = folder / "results_convgru_seeds_5"
    assert f"| {scores['DiffCast']:.4f} |" in (made / "results.md").read_text()
    assert "backbone alone, dressed" in (made / "report_convgru.html").read_text()
    assert all((made / name).read_bytes().startswith(b"\x89PNG") for name in ("crps.png", "csi.png", "spectra.png"))


@pytest.mark.slow
def test_what_is_finished_is_not_done_again_and_compared_with_what_is_stored(folder, results, monkeypatch, capsys):
    differences = results["backbones"]["convgru"]["5"]["difference_to"]
    differences["backbone alone"]["crps"] |= {"low": 1, "high": 2}
    differences["its backbone, dressed"]["crps"] |= {"low": None, "high": None}
    monkeypatch.setattr(skill_results, "STORED", folder / "stored.json")
    skill_results.STORED.write_text(json.dumps(results))
    capsys.readouterr()
    skill.main(OPTIONS)
    out = capsys.readouterr().out
    assert "started" not in out
    for label, within in {"its backbone": "yes", "backbone alone": "**no**", "its backbone, dressed": ""}.items():
        (line,) = [line for line in out.splitlines() if f"| {label} | CRPS |" in line]
        assert line.endswith(f"| {within} |")


@pytest.mark.slow
def test_results_of_another_budget_are_refused(folder, monkeypatch, capsys):
    monkeypatch.setitem(trainings.BUDGETS, "convgru", trainings.Budget(start=1, diffcast=2, alone=4))
    with pytest.raises(SystemExit, match="2"):
        skill.main(OPTIONS)
    assert "Singleconvgru_sevir_alone_5 was not made by the present command" in capsys.readouterr().err


@pytest.mark.slow
def test_tables_and_pictures_take_several_backbones_and_seeds(results, tmp_path, monkeypatch):
    one = results["backbones"]["convgru"]["5"]
    other = copy.deepcopy(one)
    other["scores"]["DiffCast"] |= {"crps": 0.5, "ssim": None}
    other["scores"]["its backbone"]["crps"] = 0.8
    other["difference_to"]["its backbone"]["crps"] |= {"value": -0.3, "low": -0.4, "high": -0.2}
    one["scores"]["DiffCast"]["crps"] = 0.25
    backbones = {"convgru": {"5": one, "6": other}, "simvp": {"5": one, "6": other}}
    lines = skill_results.summary(backbones)
    (row,) = [line for line in lines if "DiffCast around SimVP" in line]
    assert "| 0.3750 |  |" in row  # the mean CRPS, and an SSIM that one seed lacks
    assert "| SimVP | 6 | -37.5 [-50.0, -25.0] |" in "\n".join(lines)
    legends = []
    save = matplotlib.figure.Figure.savefig

    def measured(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        legends.append(figure.legends[0].get_window_extent().x0)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", measured)
    for shown in (backbones, {"convgru": backbones["convgru"]}):
        draw_results(shown, tmp_path)
    assert len(legends) == 6
    assert min(legends) >= 0  # centred: what fits on the left fits on the right


@pytest.mark.slow
def test_choices_differ_from_the_benchmarks_training_in_what_they_say(folder, capsys):
    choices.main(["--seed", "5", "--jobs", "1"])
    rows = json.loads((folder / "choices_5" / "choices.json").read_text())["rows"]
    assert list(rows) == ["benchmark", "scratch", "scale"]
    assert "--freeze_backbone" in rows["scale"]["command"]
    assert "--backbone_ckpt" not in rows["scratch"]["command"]
    assert "--freeze_backbone" not in rows["scratch"]["command"]
    crps = {name: row["scores"]["crps"] for name, row in rows.items()}
    assert len(set(crps.values())) == 3
    for name in ("scratch", "scale"):
        assert rows[name]["minus_benchmark"]["crps"]["value"] == pytest.approx(crps[name] - crps["benchmark"], abs=1e-7)
    out = capsys.readouterr().out
    assert "diffcast_5: started" not in out
    assert f"| {crps['scale']:.4f} |" in out


@pytest.mark.slow
def test_objectives_are_compared_with_diffusion_at_its_usual_steps(folder, capsys):
    words = ["--seeds", "5", "--jobs", "1"]
    objectives.main(words)
    seed = json.loads((folder / "objectives" / "objectives.json").read_text())["seeds"]["5"]
    rows = seed["scores"]
    assert list(rows) == ["diffusion, dpm 2", "diffusion, ddim 1", "then CRPS, ddim 1", "no trend, dpm 2"]
    crps = {name: row["crps"] for name, row in rows.items()}
    assert len(set(crps.values())) == 3
    assert crps["then CRPS, ddim 1"] == crps["diffusion, ddim 1"]  # whose weights it starts from, at a rate of 0
    for name, row in list(rows.items())[1:]:
        minus = row["minus_reference"]["crps"]["value"]
        assert minus == pytest.approx(row["crps"] - rows["diffusion, dpm 2"]["crps"], abs=1e-6), name
    assert all(seconds > 0 for seconds in seed["cpu_seconds"].values())
    capsys.readouterr()
    objectives.main(words)
    assert "started" not in capsys.readouterr().out


def test_a_failure_names_its_log_and_stops_the_others(runner, tmp_path):
    slow = ["-c", f"import time, pathlib; pathlib.Path('{tmp_path}/slow').touch(); time.sleep(60)"]
    late = ["-c", f"open('{tmp_path}/late', 'w')"]
    broken = [
        "-c",
        f"import os, time\nwhile not os.path.exists('{tmp_path}/slow'): time.sleep(0.01)\nraise SystemExit(3)",
    ]
    commands = {"slow": slow, "broken": broken, "late": late}
    tasks = [partial(runner.run, name, words, tmp_path / name, "never") for name, words in commands.items()]
    started = time.monotonic()
    with pytest.raises(InputError, match=r"broken ended with status 3: see .*broken\.log"):
        run_together(runner, 2, tasks)
    assert time.monotonic() - started < 40
    assert not (tmp_path / "late").exists()
    assert runner.cpu_seconds("broken") > 0


def test_sigterm_stops_the_commands(runner, tmp_path):
    words = ["-c", f"import time, pathlib; pathlib.Path('{tmp_path}/slow').touch(); time.sleep(60)"]

    def terminate():
        while not (tmp_path / "slow").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(KeyboardInterrupt):
        run_together(runner, 1, [partial(runner.run, "slow", words, tmp_path / "slow_made", "never")])
    assert not runner.running


def test_processor_time_of_attempts_adds_up(runner, tmp_path):
    words, seconds = ["-c", "sum(range(10**6))"], []
    for _ in range(2):
        runner.run("job", words, tmp_path / "made", "never")
        seconds.append(runner.cpu_seconds("job"))
    assert 0 < seconds[0] < seconds[1]
