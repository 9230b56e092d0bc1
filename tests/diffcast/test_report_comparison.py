"""Comparisons: runs whose terms come from real scores."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from diffcast.evaluation.parts import Parts
from diffcast.report import bootstrap, tables, write_comparison
from diffcast.report.__main__ import main
from diffcast.report.bootstrap import common_ids, differences, replicated_scores, resampling_weights
from diffcast.report.definitions import UNDEFINED
from diffcast.report.evaluation import Entry, load_evaluation
from tests.diffcast.test_report import LEADS, MEMBERS, THRESHOLDS, Page, rewrite, scores_of, write_metrics
from utils.errors import InputError
from utils.metrics import Scores

DIGEST = "1f3e"  # of the evaluation


def ensemble(seed, noise, sequences=200, members=MEMBERS, size=6):
    """Forecasts (B, M, T, C, H, W) of targets that depend on the number of sequences alone, and these targets."""
    target = torch.rand(sequences, LEADS, 1, size, size, generator=torch.Generator().manual_seed(1)) ** 2
    error = torch.randn(sequences, members, *target.shape[1:], generator=torch.Generator().manual_seed(seed))
    return (target[:, None] + noise * error).clamp(0, 1), target


def write_run(folder, forecast, target, parts=2, seed=0):
    """An evaluation folder with its sequences scattered over parts."""
    (folder / "sequences").mkdir(parents=True)
    scores = Scores(255.0, THRESHOLDS, LEADS, forecast.shape[1])
    terms = scores.update(forecast, target)
    order = np.random.default_rng(seed).permutation(len(target))
    for number, chosen in enumerate(np.array_split(order, parts)):
        arrays = {f"diffcast:{name}": values[chosen].numpy() for name, values in terms.items()}
        names = np.array([f"S{i:04d}" for i in chosen])
        arrays |= {"id": names, "event": names, "index": chosen, "evaluation": DIGEST}
        np.savez(folder / f"sequences/part-{number:05d}.npz", **arrays)
    values = json.loads(json.dumps(scores.compute()).replace("NaN", "null").replace("Infinity", "null"))
    how = {"members": forecast.shape[1]}
    return write_metrics(folder, {"diffcast": values}, sequences=len(target), parts=DIGEST, evaluation=how)


@pytest.fixture
def runs(tmp_path):
    """Two runs, the second one noisier."""
    return [write_run(tmp_path / name, *ensemble(i, 0.1 + 0.01 * i), seed=i) for i, name in enumerate("ab")]


def entries_of(folders):
    return [Entry(folder.name, load_evaluation(folder), "diffcast") for folder in folders]


def test_a_replicate_scores_the_sequences_it_drew(runs):
    entry = entries_of(runs)[0]
    ids = common_ids([entry.evaluation])
    weights = resampling_weights(ids, 3, seed=4)
    found = replicated_scores(entry, ids, weights)
    forecast, target = ensemble(0, 0.1)
    for row, weight in enumerate(weights):
        drawn = np.repeat(np.arange(len(ids)), weight)
        scores = Scores(255.0, THRESHOLDS, LEADS, MEMBERS)
        scores.update(forecast[drawn], target[drawn])
        expected = scores.compute()
        expected |= {f"csi_{k}": expected["csi_per_threshold"][i] for i, k in enumerate(THRESHOLDS)}
        assert {key: values[row] for key, values in found.items()} == pytest.approx(
            {key: expected[key] for key in found}, rel=1e-9, nan_ok=True
        )


@pytest.mark.slow
def test_interval_of_a_mean_agrees_with_the_normal_approximation(runs):
    (found,), _ = differences(entries_of(runs), replicates=1000)
    crps = []
    for i in range(2):
        forecast, target = ensemble(i, 0.1 + 0.01 * i)
        forecast, target = forecast.double().numpy(), target.double().numpy()
        error = np.abs(forecast - target[:, None]).mean((1, 2, 3, 4, 5))
        gaps = np.abs(forecast[:, :, None] - forecast[:, None]).mean((1, 2, 3, 4, 5, 6))
        crps.append(error - gaps / 2)
    gap = crps[1] - crps[0]
    half = 1.96 * gap.std() / np.sqrt(len(gap))
    assert found["crps"].value == pytest.approx(gap.mean(), rel=1e-6)
    assert found["crps"].low == pytest.approx(gap.mean() - half, abs=0.1 * half)
    assert found["crps"].high == pytest.approx(gap.mean() + half, abs=0.1 * half)


@pytest.mark.slow
def test_thresholds_count_from_the_offset_of_the_source(runs, tmp_path):
    (expected,), _ = differences(entries_of(runs), replicates=5)
    low, high = (threshold - 32.0 for threshold in THRESHOLDS)
    for folder in runs:
        rewrite(folder, lambda metrics: metrics["source"].update(offset=-32.0, thresholds=[low, high]))
    (found,), _ = differences(entries_of(runs), replicates=5)
    names = {f"csi_{threshold}": f"csi_{shifted:g}" for threshold, shifted in zip(THRESHOLDS, (low, high), strict=True)}
    assert str(found) == str({names.get(key, key): value for key, value in expected.items()})
    text = write_comparison([*map(str, runs)], tmp_path / "x.html").read_text()
    assert f"≥\N{NO-BREAK SPACE}{low:g} VIL byte" in text


def test_sequences_of_an_event_are_drawn_together():
    events = ["S1", "S2", "S1", "alone", "S2"]
    weights = resampling_weights(events, 50, seed=0)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights[:, [0, 1, 3]].std(axis=0).min() > 0


def test_pairing_narrows_the_interval_of_similar_runs(tmp_path):
    forecast, target = ensemble(0, 0.1)
    twins = [
        write_run(tmp_path / "a", forecast, target),
        write_run(tmp_path / "b", forecast * 0.999, target, 3, seed=1),
    ]
    entries = entries_of(twins)
    (found,), _ = differences(entries, replicates=200)
    ids = common_ids([entries[0].evaluation])
    alone = replicated_scores(entries[0], ids, resampling_weights(ids, 200, 0))["csi"]
    assert found["csi"].high - found["csi"].low < 0.5 * np.ptp(np.quantile(alone[1:], [0.025, 0.975]))


def test_comparison_has_a_verdict_per_score(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, "REPLICATES", 100)
    out = write_comparison([*map(str, runs), f"{runs[0]}:diffcast"], tmp_path / "x.html", ["first", "noisy", "same"])
    page = Page(out.read_text())
    assert page.ids.count("differences") == 1
    assert len(page.ids) == len(set(page.ids))
    row = re.search(r'<th scope="row">CRPS ↓</th>(.*?)</tr>', out.read_text())[1]
    noisy, same = re.findall(r'verdict (\w+)"', row)
    assert (noisy, same) == ("worse", "unclear")
    assert "SSIM ↑" not in re.search(r'<section id="differences">.*?</section>', out.read_text(), re.DOTALL)[0]


def test_each_forecast_shows_only_the_settings_that_it_has(tmp_path):
    scores = {name: scores_of(1) for name in ("diffcast", "trend", "dressed", "advection")}
    how = {"members": 8, "sampler": "ddim", "sampling_steps": 20, "seed": 0}
    settings = how | {"dataset": "sevir", "lr": 0.25, "forecast_precision": "bfloat16"}
    checkpoint = {"label": "best", "sha256": "f" * 64}
    folder = write_metrics(tmp_path / "a", scores, evaluation=how, settings=settings, checkpoint=checkpoint)
    (folder / "sequences").mkdir()
    np.savez(folder / "sequences/part-00000.npz", id=np.array(["S1"]))
    entries = [Entry(name, load_evaluation(folder), name) for name in scores]
    page = str(tables.facts(entries)) + str(tables.settings(entries))
    rows = {
        name: re.sub("<[^>]*>", "|", cells).strip("|").split("||")
        for name, cells in re.findall(r'<th scope="row">(?:<b>)?(.*?)(?:</b>)?</th>(.*?)</tr>', page)
    }
    assert rows["Sampler"] == ["ddim, 20 network evaluations per segment", UNDEFINED, UNDEFINED, UNDEFINED]
    assert rows["Seed"] == ["0", UNDEFINED, "0", UNDEFINED]
    assert rows["Checkpoint"] == ["best", "best", "best", UNDEFINED]
    assert rows["sampler"] == ["ddim", UNDEFINED, UNDEFINED, UNDEFINED]
    assert rows["forecast_precision"] == ["bfloat16", UNDEFINED, UNDEFINED, UNDEFINED]
    assert rows["lr"] == ["0.25", "0.25", "0.25", UNDEFINED]
    assert rows["dataset"] == ["sevir"]  # one cell for all


def test_parts_of_another_evaluation_are_not_compared(runs):
    path = runs[1] / "sequences/part-00001.npz"
    np.savez(path, **(dict(np.load(path)) | {"evaluation": "another"}))
    with pytest.raises(InputError, match=r"part-00001.npz belongs to another evaluation"):
        common_ids([entry.evaluation for entry in entries_of(runs)])


def test_different_sequences_are_refused(tmp_path):
    for name, count in {"a": 30, "b": 20}.items():
        write_run(tmp_path / name, *ensemble(0, 0.1, sequences=count))
    with pytest.raises(InputError, match=r"a scores 30 sequences and .*b 20, of which 20 are common"):
        write_comparison([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "x.html")


def test_different_sources_are_refused(runs, tmp_path):
    rewrite(runs[1], lambda metrics: metrics["source"].update(interval=10.0))
    with pytest.raises(InputError, match=r"interval is 5\.0 in the one and 10\.0 in the other"):
        write_comparison([*map(str, runs)], tmp_path / "x.html")


def test_events_that_the_parts_name_are_drawn_together(runs):
    for path in runs[0].glob("sequences/part-*.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **(arrays | {"event": np.array([f"storm {name[-1]}" for name in arrays["id"]])}))
    events = load_evaluation(runs[0]).events
    assert len(events) == 200
    assert events["S0123"] == events["S0003"] == "storm 3"
    named, unnamed = entries_of(runs), entries_of(runs[1:] + runs[:1])  # those of the first run count
    widths = [
        abs(found["crps"].high - found["crps"].low)
        for (found,), _ in (differences(entries, replicates=200) for entries in (named, unnamed))
    ]
    assert widths[0] != pytest.approx(widths[1], rel=0.01)


def test_a_flipped_byte_in_a_part_is_refused_or_harmless(tmp_path):
    names, path = [f"S{i}" for i in range(99)], tmp_path / "part-00000.npz"
    np.savez_compressed(path, id=names, event=names, evaluation=DIGEST)
    whole, refused = path.read_bytes(), 0
    for where in range(0, len(whole), 5):
        path.write_bytes(whole[:where] + bytes([whole[where] ^ 0xFF]) + whole[where + 1 :])
        try:
            assert Parts(tmp_path, DIGEST).events() == dict(zip(names, names, strict=True))
        except InputError:
            refused += 1
    assert refused > len(whole) // 10


def damage(folder, what):
    part = folder / "sequences/part-00000.npz"
    if what == "no folder":
        shutil.rmtree(folder)
    elif what == "no metrics":
        (folder / "metrics.json").unlink()
    elif what == "broken JSON":
        (folder / "metrics.json").write_text('{"scores": ')
    elif what == "no source":
        rewrite(folder, lambda metrics: metrics.pop("source"))
    elif what == "no parts":
        shutil.rmtree(folder / "sequences")
    elif what == "missing part":
        part.unlink()
    elif what == "broken part":
        part.write_bytes(part.read_bytes()[:100])
    elif what == "pickled part":
        np.savez(part, **(dict(np.load(part)) | {"id": np.array([{}], dtype=object)}))
    elif what == "flipped byte":
        np.savez_compressed(part, **dict(np.load(part)))
        data = bytearray(part.read_bytes())
        data[data.index(b"id.npy") + len("id.npy") + 30] ^= 0xFF
        part.write_bytes(data)
    elif what == "no terms":
        np.savez(part, **{name: np.load(part)[name] for name in ("id", "event", "evaluation")})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", "is not a folder"),
        ("no metrics", "has no metrics.json; evaluate"),
        ("broken JSON", "is not the result of an evaluation"),
        ("no source", "is not the result of an evaluation"),
        ("no parts", "sequences has no part-*.npz"),
        ("missing part", "hold 100 sequences, but metrics.json was computed from 200"),
        ("broken part", "is damaged"),
        ("pickled part", "is damaged"),
        ("flipped byte", "is damaged"),
        ("no terms", "is incomplete (diffcast:categorical/"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(runs, tmp_path, capsys, what, message):
    damage(runs[1], what)
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, runs), "--out", str(tmp_path / "x.html")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.html").exists()


def test_names_must_fit(runs, tmp_path):
    with pytest.raises(InputError, match="--names gives 1 names for 2 runs"):
        write_comparison([*map(str, runs)], tmp_path / "x.html", ["a"])
    with pytest.raises(InputError, match="give each a name of its own"):
        write_comparison([str(runs[0])] * 2, tmp_path / "x.html")
    with pytest.raises(InputError, match='no forecast "trend"; it has diffcast'):
        write_comparison([str(runs[0]), f"{runs[0]}:trend"], tmp_path / "x.html")
