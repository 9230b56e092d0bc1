"""The evaluation loop: every sequence once, the same numbers for any number of processes."""

import json

import pytest

import run
from tests.tiny import arguments, run_py


@pytest.fixture(scope="module")
def weights(storm_folder, tmp_path_factory):
    exp_dir = tmp_path_factory.mktemp("exps")
    run.main(arguments(storm_folder, exp_dir, "--use_diff", "--training_steps", "3", "--eval_sequences", "1"))
    return str(exp_dir / "Diffsimvp_sevir/checkpoints/best.safetensors")


def scores(folder):
    return json.loads((folder / "Diffsimvp_sevir/evaluation_best/metrics.json").read_text())


def flat(value, name=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{name}/{key}").items()}
    return {name: value}


@pytest.mark.parametrize("sequences", ["9", "1"], ids=["that do not divide", "fewer than processes"])
def test_two_processes_give_the_scores_of_one(weights, storm_folder, tmp_path, sequences):
    words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--members", "2", "--eval_sequences", sequences]
    results = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        done = run_py(*arguments(storm_folder, folder, *words, "--batch_size", "2"), processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(scores(folder))
    assert results[0]["sequences"] == int(sequences)
    one, two = (flat(result["scores"]) for result in results)
    assert len(one) > 1000
    undefined = {name for name, value in one.items() if value is None}
    assert {name for name, value in two.items() if value is None} == undefined
    for name in one.keys() - undefined:
        assert two[name] == pytest.approx(one[name], rel=1e-9, abs=1e-12), name
    counts = [name for name in one if "/counts/" in name]
    assert [two[name] for name in counts] == [one[name] for name in counts]
    per_lead = int(sequences) * 16 * 16
    assert (
        sum(one[f"/persistence/counts/{kind}/0/0"] for kind in ("hits", "misses", "false_alarms", "correct_negatives"))
        == per_lead
    )


def test_members_differ_and_seeds_repeat(weights, storm_folder, tmp_path):
    found = []
    for name, seed in {"a": "0", "b": "0", "c": "1"}.items():
        words = ["--use_diff", "--eval", "--ckpt_milestone", weights, "--members", "2", "--seed", seed]
        run.main(arguments(storm_folder, tmp_path / name, *words))
        found.append(scores(tmp_path / name)["scores"]["diffcast_simvp"])
    assert found[0] == found[1] != found[2]
    assert found[0]["spread"] > 0
