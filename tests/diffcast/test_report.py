"""The page about one evaluation."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diffcast.report import write_report
from diffcast.report.__main__ import main
from diffcast.report.charts import ensemble_curves, lead_curves
from diffcast.report.evaluation import Entry, load_evaluation
from utils.errors import InputError

THRESHOLDS, LEADS, MEMBERS, SCALES, BINS = (16, 74), 4, 3, 3, 8
SOURCE = {
    **{
        "name": "VIL",
        "scale": 255.0,
        "offset": 0.0,
        "units": "VIL byte",
        "synthetic": False,
        "thresholds": list(THRESHOLDS),
        "interval": 5.0,
    },
    **{"pixel_km": 3.0, "frame_shape": [1, 128, 128], "frames_in": 5, "frames_out": LEADS},
}
SECTIONS = ["summary", "thresholds", "csi", "hss", "ensemble", "ranks", "reliability", "roc", "spectra", "fss", "cases"]
SECTIONS += ["definitions", "provenance"]


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
        if tag not in ("meta", "img", "input", "br"):
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
    metrics = {"name": "diffcast", "source": SOURCE, "sequences": 7, "scores": scores, **more}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def evaluation(tmp_path):
    """The folder of an evaluation with everything a report can show."""
    folder = tmp_path / "evaluation_1"
    case = {"id": "S1", "why": "best", "crps": 0.0123, "rain": 0.234, "pictures": ["case.gif"]}
    scores = {"diffcast": scores_of(MEMBERS), "persistence": scores_of(1, 5)}
    settings = {"dataset": "synthetic", "lr": 1e-4}
    how = {"members": MEMBERS, "sampler": "ddim", "sampling_steps": 20}
    write_metrics(folder, scores, cases=[case], settings=settings, evaluation=how)
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    frames[0].save(folder / "case.gif", save_all=True, append_images=frames[1:], duration=100)
    return folder


def rewrite(folder, change):
    metrics = json.loads((folder / "metrics.json").read_text())
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))


def page_of(folder):
    return Page(write_report(folder).read_text())


@pytest.mark.usefixtures("charts")
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
    assert "CRPS 0.0123, rain on 23% of the pixels" in page.text


@pytest.mark.usefixtures("charts")
def test_same_evaluation_gives_the_same_bytes(evaluation):
    first = write_report(evaluation).read_bytes()
    assert write_report(evaluation).read_bytes() == first


@pytest.mark.usefixtures("charts")
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
    assert "script" not in after.tags
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


@pytest.mark.usefixtures("charts")
def test_undefined_scores_are_dashes_and_gaps(evaluation):
    def undefine(metrics):
        scores = metrics["scores"]["diffcast"]
        scores |= {key: [None] * LEADS for key in scores if key.endswith("_per_lead") and key.startswith("crps")}
        scores["csi"] = None
        scores["csi_per_threshold_lead"][0] = [None] * LEADS

    rewrite(evaluation, undefine)
    text = write_report(evaluation).read_text()
    assert re.search('diffcast</span></th><td data-heading="CSI ↑">\N{EN DASH}</td>', text)
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", text))


@pytest.mark.usefixtures("charts")
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


def test_equal_scores_have_no_best(tmp_path):
    scores = {"a": {"csi": 0.31, "far": 0.40004}, "b": {"csi": 0.3, "far": 0.4}}
    text = write_report(write_metrics(tmp_path, scores)).read_text()
    assert re.findall(r'<strong title="best">([^<]*)', text) == ["0.3100"]


def test_a_threshold_that_nothing_reaches_has_no_csi(tmp_path):
    table = {
        "hits": [[5] * LEADS, [0] * LEADS],
        "misses": [[1] * LEADS, [0] * LEADS],
        "false_alarms": [[0] * LEADS] * 2,
    }
    scores = {"csi": 0.4, "csi_per_threshold": [5 / 6, 0.0], "csi_empty_cells": LEADS, "counts": table}
    text = write_report(write_metrics(tmp_path, {"a": scores})).read_text()
    assert re.search(">0.8333</td><td[^>]*>\N{EN DASH}</td>", text)
    assert f"over {2 * LEADS} cells" in text
    assert f"Number of such cells: a {LEADS}." in text


@pytest.mark.usefixtures("charts")
def test_perfect_frames_make_psnr_infinite(tmp_path):
    scores = {"a": {"psnr": None, "perfect_frames": 3}, "b": {"psnr": 31.5, "perfect_frames": 0}}
    text = write_report(write_metrics(tmp_path, scores)).read_text()
    assert ">∞ (3 perfect frames)</td>" in text
    assert ">31.50</td>" in text


def test_undefined_baselines_are_counted_beside_the_best(tmp_path):
    values = {"ours": 0.3, "trend": None, "advection": 0.2, "persistence": None}
    page = page_of(write_metrics(tmp_path, {name: {"csi_pool16": value} for name, value in values.items()}))
    assert "best baseline 0.2000 (advection), undefined for 2 of 3 baselines" in page.text


def test_forecasts_with_gaps_are_warned_of(evaluation):
    assert 'class="warning"' not in write_report(evaluation).read_text()
    rewrite(evaluation, lambda metrics: metrics["scores"]["persistence"].update(missing_forecast_pixels=1234))
    assert "persistence is NaN at 1,234 observed pixels" in page_of(evaluation).text


def test_negative_skill_stays_in_the_chart(evaluation):
    rewrite(
        evaluation, lambda metrics: metrics["scores"]["persistence"]["hss_per_threshold_lead"][1].__setitem__(0, -0.4)
    )
    loaded = load_evaluation(evaluation)
    panels = lead_curves([Entry(name, loaded, name) for name in loaded.scores], "hss", "HSS")
    assert all(panel.y_range[0] < -0.4 for panel in panels)


def test_the_drawn_spread_is_that_which_equals_skill_if_reliable(evaluation):
    entry = Entry("ours", load_evaluation(evaluation), "diffcast")
    *_, spread, _ = ensemble_curves([entry])
    corrected = np.sqrt((MEMBERS + 1) / MEMBERS) * entry.array("spread_per_lead")
    assert np.allclose(spread.curves[-1].y, corrected)
    assert "corrected" in spread.title


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, True),
        ({"frames_out": 12}, False),
        ({"dataset": "cikm"}, False),
        ({"split": "benchmark"}, False),
        ({"stride": 10}, False),
        ({"eval_sequences": 100}, False),
        ({"synthetic": True}, False),
    ],
)
def test_published_scores_stand_beside_ours_in_their_setting_only(tmp_path, change, shown):
    source = SOURCE | {"frames_out": change.get("frames_out", 20), "synthetic": change.get("synthetic", False)}
    settings = {"dataset": "sevir", "split": "official", "stride": None, "eval_sequences": None} | change
    page = page_of(write_metrics(tmp_path, {"a": {"csi": 0.3}}, source=source, settings=settings))
    assert ("0.3077" in page.text) == ("CVPR 2024" in page.text) == ("not as a ranking" in page.text) == shown
    assert ("reduced test set" in page.text) == shown


def test_synthetic_storms_are_never_called_sevir(evaluation):
    def synthetic(metrics):
        metrics["source"] |= {"name": "synthetic storms", "synthetic": True}
        metrics["settings"]["dataset"] = "sevir"

    rewrite(evaluation, synthetic)
    text = page_of(evaluation).text
    assert "7 sequences of synthetic storms, which say nothing about weather, 3 members" in text
    assert "Datasynthetic storms" in text
    assert "sevir synthetic storms" not in text


def test_an_animation_waits_for_a_click_behind_its_still(evaluation):
    Image.new("L", (8, 8)).save(evaluation / "case.png")
    rewrite(evaluation, lambda metrics: metrics["cases"][0].update(pictures=["case.png", "case.gif"]))
    text = write_report(evaluation).read_text()
    assert re.findall(r'(<details>.*?)?<img[^>]*alt="S1, ([^"]*)"', text) == [
        ("", "case.png"),
        ("<details><summary>Animation: case</summary>", "case.gif"),
    ]


@pytest.mark.parametrize("text", ['{"scores": {"a"', "[1, 2]", '{"epoch": 3, "scores": {"accuracy": 0.9}}'])
def test_a_file_that_no_evaluation_wrote_is_refused_in_one_sentence(evaluation, text):
    (evaluation / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.json is not the result of an evaluation; .*again\.$"):
        write_report(evaluation)


def test_a_chart_opens_with_six_lines_at_most_and_the_others_on_demand(evaluation, charts):
    more = {f"other {i}": scores_of(MEMBERS, i) for i in range(6)}
    rewrite(evaluation, lambda metrics: metrics["scores"].update(more))
    text = write_report(evaluation).read_text()
    most = []
    for section in re.findall(r'<section id="\w+">.*?</section>', text, re.DOTALL):
        charts = [re.findall(r'<g class="(line-[^"]*)"', axes) for axes in re.split('<g id="[^"]*-axes_', section)[1:]]
        boxes = re.findall(r'<input[^>]*class="(line-[^"]*)"([^>]*)>', section)
        shown = [line for line, state in boxes if "checked" in state] + ["line-None"]
        assert {line for chart in charts for line in chart} <= {line for line, _ in boxes} | {"line-None"}
        most += [max(sum(line in shown for line in chart) for chart in charts)] if charts else []
    assert most == [6] * 8
    for line in ("line-7", "line-7-variant"):
        assert f".{line}:not(:checked) ~ .panels g.{line} {{ display: none; }}" in text


@pytest.mark.parametrize(("leads", "interval", "step"), [(20, 5, 20), (12, 5, 10), (10, 6, 10), (25, 10, 60)])
def test_lead_times_are_ticked_in_equal_round_steps(evaluation, leads, interval, step):
    loaded = load_evaluation(evaluation)
    loaded.source.update(frames_out=leads, interval=interval)
    loaded.scores["diffcast"].update(crps_per_lead=[0.1] * leads, crps_fair_per_lead=None)
    chart = ensemble_curves([Entry("ours", loaded, "diffcast")])[0]
    assert chart.x_ticks.tolist() == list(range(0, leads * interval + 1, step))


def test_a_reading_aid_names_the_null_before_the_first_table(evaluation):
    rewrite(evaluation, lambda metrics: metrics["scores"].update(trend=scores_of(1), dressed=scores_of(MEMBERS)))
    text = write_report(evaluation).read_text()
    assert text.index("pays twice") < text.index("The null is “dressed”") < text.index("<table")
    rewrite(evaluation, lambda metrics: metrics["scores"].pop("dressed"))
    assert "evaluate with --dress" in page_of(evaluation).text


def test_thresholds_of_vil_are_named_in_physical_units_too(evaluation):
    text = write_report(evaluation).read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "<figcaption>≥ 74 VIL byte (0.78 kg/m²)</figcaption>" in text
    assert '<th scope="col">≥ 16 (0.15 kg/m²)</th>' in text


def test_a_run_folder_stands_for_its_only_evaluation(evaluation):
    main([str(evaluation.parent)])
    assert (evaluation / "report.html").is_file()
    shutil.copytree(evaluation, evaluation.with_name("evaluation_2"))
    with pytest.raises(InputError, match=r"2 evaluations \(evaluation_1, evaluation_2\); name one"):
        write_report(evaluation.parent)


@pytest.mark.usefixtures("charts")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not on PATH")
def test_page_opens_in_a_browser_without_console_errors(evaluation, tmp_path):
    switches = "headless no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync"
    command = ["chromium", *(f"--{switch}" for switch in switches.split()), "--enable-logging=stderr", "--dump-dom"]
    page = write_report(evaluation)
    opened = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()], capture_output=True, text=True, timeout=60
    )
    assert "CONSOLE" not in opened.stderr
