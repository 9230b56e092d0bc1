import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from utils.errors import InputError
from utils.metrics import Scores
from utils.report import bootstrap, write_comparison, write_report
from utils.report.__main__ import main
from utils.report.bootstrap import common_ids, differences, event_of, replicated_scores, resampling_weights
from utils.report.evaluation import Entry, load_evaluation

THRESHOLDS, LEADS, MEMBERS, SCALES, BINS = (16, 74), 4, 3, 3, 8
SOURCE = {
    **{"name": "VIL", "scale": 255.0, "units": "VIL byte", "thresholds": list(THRESHOLDS), "interval": 5.0},
    **{"pixel_km": 3.0, "frame_shape": [1, 128, 128], "frames_in": 5, "frames_out": LEADS},
}
SECTIONS = ["summary", "thresholds", "csi", "hss", "ensemble", "ranks", "reliability", "roc", "spectra", "fss", "cases"]
SECTIONS += ["definitions", "settings"]


class Page(HTMLParser):
    """Ids, links, text and nesting of a document."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.tags, self.handlers, self.open, self.text = [], [], [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for key, value in attributes:
            self.ids += [value] if key == "id" else []
            self.links += [value] if key in ("src", "href", "xlink:href", "action", "data", "poster") else []
            self.handlers += [key] if key.startswith("on") else []
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def scores_of(members, seed=0):
    """Random numbers in the shapes of all scores."""
    rng = np.random.default_rng(seed)
    k, t, m = len(THRESHOLDS), LEADS, members
    shapes = dict.fromkeys(("csi_total", "csi_pool4", "csi_pool16", "far", "pod", "ets", "ssim", "mae", "mse"), ())
    for name in ("csi", "hss", "bias"):
        shapes |= {name: (), f"{name}_per_threshold": (k,), f"{name}_per_threshold_lead": (k, t)}
    for name in ("crps", "crps_fair", "spread", "skill", "spread_skill_ratio"):
        shapes |= {name: (), f"{name}_per_lead": (t,)}
    shapes |= {"fss_scales": (SCALES,), "fss_per_threshold_scale": (k, SCALES)}
    shapes |= {"spectrum_frequency": (BINS,), "spectrum": (BINS,), "spectrum_target": (BINS,)}
    shapes |= {"spectrum_per_lead": (t, BINS), "spectrum_target_per_lead": (t, BINS)}
    if members > 1:
        shapes |= {"rank_histogram": (m + 1,), "rank_histogram_wet": (m + 1,), "brier": (k,), "roc_area": (k,)}
        shapes |= {"reliability_observed_frequency": (k, m + 1), "reliability_count": (k, m + 1)}
        shapes |= {"roc_pod": (k, m + 2), "roc_pofd": (k, m + 2), "fss_probability_per_threshold_scale": (k, SCALES)}
    scores = {name: rng.random(shape).tolist() for name, shape in shapes.items()}
    scores |= {"fss_scales": [1, 2, 4], "spectrum_frequency": (np.arange(BINS) / (2 * BINS)).tolist()}
    return scores | ({"ensemble_mean": scores_of(1, seed + 1)} if members > 1 else {})


def write_metrics(folder, scores, **more):
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"name": "diffcast", "source": SOURCE, "scores": scores, **more}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def evaluation(tmp_path):
    """The folder of an evaluation with everything a report can show."""
    folder = tmp_path / "evaluation_1"
    case = {"id": "S1", "why": "best", "crps": 0.0123, "pictures": ["case.gif"]}
    scores = {"diffcast": scores_of(MEMBERS), "persistence": scores_of(1, 5)}
    settings = {"dataset": "synthetic", "lr": 1e-4}
    how = {"members": MEMBERS, "sampler": "ddim", "sampling_steps": 20}
    write_metrics(folder, scores, cases=[case], settings=settings, evaluation=how, sequences=7)
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    frames[0].save(folder / "case.gif", save_all=True, append_images=frames[1:], duration=100)
    return folder


def rewrite(folder, change):
    metrics = json.loads((folder / "metrics.json").read_text())
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))


def page_of(folder):
    return Page(write_report(folder).read_text())


def test_report_is_one_valid_page_that_loads_nothing(evaluation):
    text = write_report(evaluation).read_text()
    page = Page(text)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert len(page.ids) == len(set(page.ids))
    inside = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids)
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    assert not set(page.tags) & {"link", "iframe", "object", "embed"}
    assert "Best: S1" in page.text
    assert "CRPS 0.0123" in page.text


def test_same_evaluation_gives_the_same_bytes(evaluation):
    first = write_report(evaluation).read_bytes()
    assert write_report(evaluation).read_bytes() == first


def test_text_of_files_cannot_become_markup(evaluation):
    attack = '"><script>alert(1)</script><img src=x onerror=alert(1)> $x_$ & '

    def inject(metrics):
        metrics["scores"] = {attack + name: scores for name, scores in metrics["scores"].items()}
        metrics["source"] |= {"name": attack, "units": attack}
        metrics["settings"] |= {attack: attack, "dataset": attack}
        metrics["evaluation"]["sampler"] = attack
        keys = ("command", "commit", "date", "version")
        metrics |= {
            "name": attack,
            "about": dict.fromkeys(keys, attack),
            "checkpoint": {"label": attack, "sha256": attack},
        }
        metrics["cases"][0] |= {"id": attack, "why": attack}

    before = page_of(evaluation)
    rewrite(evaluation, inject)
    after = page_of(evaluation)
    assert after.tags.count("script") == before.tags.count("script") == 1
    assert after.tags.count("img") == before.tags.count("img") == 1
    assert not after.handlers
    assert attack.strip() in after.text


def test_pictures_of_other_folders_stay_out(evaluation):
    secret = evaluation.parent / "secret.png"
    secret.write_bytes(b"secret")
    rewrite(evaluation, lambda metrics: metrics["cases"][0].update(pictures=["../secret.png", str(secret), "gone.gif"]))
    assert "img" not in page_of(evaluation).tags


@pytest.mark.parametrize("kept", [["csi"], ["csi", "csi_per_threshold_lead", "crps_per_lead"], ["spectrum"]])
def test_charts_without_scores_are_left_out(tmp_path, kept):
    full = scores_of(MEMBERS)
    page = page_of(write_metrics(tmp_path, {"diffcast": {key: full[key] for key in kept}}))
    drawn = {"csi", "ensemble"} if len(kept) > 1 else set()
    assert set(page.ids) & {"csi", "hss", "ensemble", "ranks", "reliability", "roc", "spectra", "fss"} == drawn


def test_undefined_scores_are_dashes_and_gaps(evaluation):
    def undefine(metrics):
        scores = metrics["scores"]["diffcast"]
        scores |= {key: [None] * LEADS for key in scores if key.endswith("_per_lead") and key.startswith("crps")}
        scores["csi"] = None
        scores["csi_per_threshold_lead"][0] = [None] * LEADS

    rewrite(evaluation, undefine)
    text = write_report(evaluation).read_text()
    assert re.search("diffcast</span></th><td>\N{EN DASH}</td>", text)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)


def test_a_dry_source_can_be_drawn(evaluation):
    def dry(metrics):
        for scores in metrics["scores"].values():
            for key in scores:
                if key.startswith(("spectrum", "reliability_count", "rank")) and key != "spectrum_frequency":
                    scores[key] = (0 * np.array(scores[key])).tolist()

    rewrite(evaluation, dry)
    assert "ranks" in page_of(evaluation).ids


def test_best_score_of_a_column_is_marked(tmp_path):
    scores = {"a": {"csi": 0.31, "far": 0.4, "bias": 1.3}, "b": {"csi": 0.3, "far": 0.2, "bias": 0.9}}
    text = write_report(write_metrics(tmp_path, scores)).read_text()
    assert re.findall(r'<strong title="best">([^<]*)', text) == ["0.3100", "0.2000", "0.900"]


@pytest.mark.parametrize(
    ("dataset", "frames_out", "shown"), [("sevir", 20, True), ("sevir", 12, False), ("cikm", 20, False)]
)
def test_published_scores_stand_beside_ours_in_their_setting_only(tmp_path, dataset, frames_out, shown):
    source = SOURCE | {"frames_out": frames_out}
    folder = write_metrics(tmp_path, {"a": {"csi": 0.3}}, source=source, settings={"dataset": dataset})
    page = page_of(folder)
    assert ("0.3077" in page.text) == ("CVPR 2024" in page.text) == ("not as a ranking" in page.text) == shown


# Comparison: runs whose terms come from real scores


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
        np.savez(folder / f"sequences/part-{number:05d}.npz", id=names, index=chosen, **arrays)
    values = json.loads(json.dumps(scores.compute()).replace("NaN", "null").replace("Infinity", "null"))
    return write_metrics(folder, {"diffcast": values}, sequences=len(target), evaluation={"members": forecast.shape[1]})


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


def test_sequences_of_an_event_are_drawn_together():
    events = [event_of(name) for name in ("S1+0", "S2+0", "S1+12", "alone", "S2+5")]
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


def test_different_sequences_are_refused(tmp_path):
    for name, count in {"a": 30, "b": 20}.items():
        write_run(tmp_path / name, *ensemble(0, 0.1, sequences=count))
    with pytest.raises(InputError, match=r"a scores 30 sequences and .*b 20, of which 20 are common"):
        write_comparison([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "x.html")


def test_different_sources_are_refused(runs, tmp_path):
    rewrite(runs[1], lambda metrics: metrics["source"].update(interval=10.0))
    with pytest.raises(InputError, match=r"interval is 5\.0 in the one and 10\.0 in the other"):
        write_comparison([*map(str, runs)], tmp_path / "x.html")


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
        np.savez(part, id=np.array([{}], dtype=object))
    elif what == "no terms":
        np.savez(part, id=np.load(part)["id"])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", "is not a folder"),
        ("no metrics", "has no metrics.json; evaluate"),
        ("broken JSON", "is not valid JSON"),
        ("no source", 'lacks "scores" or "source"'),
        ("no parts", "has no sequences/part-"),
        ("missing part", "hold 100 sequences, but metrics.json was computed from 200"),
        ("broken part", "cannot be read"),
        ("pickled part", "cannot be read"),
        ("no terms", "does not hold diffcast:categorical/"),
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


def test_a_run_folder_stands_for_its_only_evaluation(evaluation):
    main([str(evaluation.parent)])
    assert (evaluation / "report.html").is_file()
    shutil.copytree(evaluation, evaluation.with_name("evaluation_2"))
    with pytest.raises(InputError, match=r"2 evaluations \(evaluation_1, evaluation_2\); name one"):
        write_report(evaluation.parent)


def test_names_must_fit(runs, tmp_path):
    with pytest.raises(InputError, match="--names gives 1 names for 2 runs"):
        write_comparison([*map(str, runs)], tmp_path / "x.html", ["a"])
    with pytest.raises(InputError, match="give each a name of its own"):
        write_comparison([str(runs[0])] * 2, tmp_path / "x.html")
    with pytest.raises(InputError, match='no forecast "trend"; it has diffcast'):
        write_comparison([str(runs[0]), f"{runs[0]}:trend"], tmp_path / "x.html")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not on PATH")
def test_page_opens_in_a_browser_without_console_errors(evaluation, tmp_path):
    switches = "headless no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync"
    command = ["chromium", *(f"--{switch}" for switch in switches.split()), "--enable-logging=stderr", "--dump-dom"]
    page = write_report(evaluation)
    opened = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()], capture_output=True, text=True, timeout=60
    )
    assert "CONSOLE" not in opened.stderr
    button = re.search(r"<button[^>]*>", opened.stdout)[0]
    assert "hidden" not in button  # the script ran
