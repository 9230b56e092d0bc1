"""The two reports: of one evaluation, and of several side by side."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from diffcast.report import bootstrap, charts, tables
from diffcast.report.definitions import DEFINITIONS, Definition
from diffcast.report.evaluation import Entry, Evaluation, find_entry, load_evaluation
from diffcast.report.markup import Html, tag
from diffcast.report.page import Section, gallery, page, panels
from diffcast.report.published import published_for
from utils.errors import InputError
from utils.files import replacing

TILES = ("csi", "csi_pool16", "hss", "crps", "spread_skill_ratio")
MEAN_NOTE = "The ensemble mean is dashed."
CHARTS = (  # of sections: slug, title, function that draws the panels, note on how to read them
    ("csi", "CSI", partial(charts.lead_curves, score="csi", label="CSI"), MEAN_NOTE),
    ("hss", "HSS", partial(charts.lead_curves, score="hss", label="HSS"), MEAN_NOTE),
    (
        "ensemble",
        "CRPS and spread",
        charts.ensemble_curves,
        "The CRPS of a single forecast is its mean absolute error. The corrected spread is the spread times "
        "√((M + 1) / M) for M members. It equals the skill if the ensemble is reliable.",
    ),
    (
        "ranks",
        "Ranks",
        charts.rank_histograms,
        "The histogram of a reliable ensemble is flat, at 1. It is high at both ends if the ensemble is too narrow and "
        "high at the left if the ensemble is too wet. At a wet pixel, the observation or a member reaches the lowest "
        "threshold.",
    ),
    (
        "reliability",
        "Reliability",
        charts.reliability,
        "The curve of a reliable forecast follows the diagonal. It lies below if the probabilities are too high. The "
        "strips show the number of pixels per probability.",
    ),
    (
        "roc",
        "ROC",
        charts.roc,
        "A point stands for a warning if a given number of members reach the threshold. The diagonal has no skill.",
    ),
    (
        "spectra",
        "Spectra",
        charts.spectra,
        f"A forecast with less power than the observation is blurred at that wavelength. {MEAN_NOTE}",
    ),
    (
        "fss",
        "FSS",
        charts.fss,
        "Solid lines are means over members, dashed lines are of the exceedance probability. A forecast is useful "
        "above the black line.",
    ),
)
REPORT = "report.html"


def write_report(
    folder: str | Path,
    out: str | Path | None = None,  # `report.html` in the evaluation's folder
) -> Path:
    """Write a page about the evaluation in `folder`, and return its path.

    The page is one file, with charts, pictures and style inside. A chart or table without scores is left out. Raises
    `InputError` if `folder` holds no evaluation or the page cannot be written.
    """
    evaluation = load_evaluation(Path(folder))
    entries = [Entry(forecast, evaluation, forecast) for forecast in evaluation.scores]
    header = [_lead(evaluation), *_warnings(entries), _tiles(entries)]
    sections = [
        Section("summary", "Summary", [*_reading_aid(entries), *tables.summary(entries)]),
        *_score_sections(entries),
        Section("cases", "Cases", gallery(evaluation)),
        *_closing_sections(entries, entries[:1]),
    ]
    title = f"Evaluation of {evaluation.name}"
    return _write(Path(out or evaluation.folder / REPORT), page(title, header, sections, len(entries)))


def write_comparison(
    runs: Sequence[str],  # folders; `folder:forecast` for a baseline of an evaluation
    out: str | Path,
    names: Sequence[str] | None = None,
) -> Path:
    """Write a page that compares runs with the first; return its path.

    Raises `InputError` if a run holds no evaluation or if the runs scored different sequences, whose scores would not
    be comparable.
    """
    entries = _named([find_entry(run) for run in runs], names)
    sequences = bootstrap.common_ids([entry.evaluation for entry in entries])
    what = f"the same {len(sequences)} sequences{_of_synthetic_storms(entries[0].evaluation)}"
    header = [tag("p", f"{len(entries)} forecasts of {what}", class_="lead"), *_warnings(entries)]
    sections = [
        Section("differences", "Differences", [*_reading_aid(entries), *_differences(entries)]),
        Section("summary", "Summary", tables.summary(entries)),
        *_score_sections(entries),
        *_closing_sections(entries, entries),
    ]
    return _write(Path(out), page(f"Comparison with {entries[0].label}", header, sections, len(entries)))


def _write(path: Path, text: str) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
    return path


def _named(entries: list[Entry], names: Sequence[str] | None) -> list[Entry]:
    """The entries under the names given, or under distinct names."""
    labels = [entry.label for entry in entries]
    if names is not None:
        if len(names) != len(entries):
            raise InputError(f"--names gives {len(names)} names for {len(entries)} runs; give one for each.")
        labels = list(names)
    elif len(set(labels)) < len(labels):
        labels = [f"{label} ({entry.evaluation.folder})" for label, entry in zip(labels, entries, strict=True)]
    if len(set(labels)) < len(labels):
        raise InputError(f"the runs are called {', '.join(labels)}; give each a name of its own with --names.")
    return [replace(entry, label=label) for label, entry in zip(labels, entries, strict=True)]


def _lead(evaluation: Evaluation) -> Html:
    source, members = evaluation.source, evaluation.section("evaluation").get("members") or 1
    what = f"{members} members" if members > 1 else "one member"
    date = str(evaluation.section("about").get("date") or "")[:10]
    minutes = source["frames_out"] * source["interval"]
    sequences = f"{evaluation.metrics['sequences']} sequences{_of_synthetic_storms(evaluation)}"
    text = f"{sequences}, {what}, forecasts up to {minutes:g} min"
    return tag("p", ", ".join(part for part in (text, date) if part), class_="lead")


def _of_synthetic_storms(evaluation: Evaluation) -> str:
    """What follows the number of sequences if they are not observations."""
    return " of synthetic storms, which say nothing about weather" if evaluation.source["synthetic"] else ""


def _reading_aid(entries: Sequence[Entry]) -> list[Html]:
    """The meaning of a member's CSI, and the null."""
    if not any("trend" in entry.evaluation.scores for entry in entries):
        return []
    null = next((entry.label for entry in entries if entry.forecast == "dressed"), None)
    found = f"“{null}”" if null else "not shown (evaluate with --dress to add it)"
    aid = (
        "A member is one sharp draw and pays twice for a displaced cell, as a miss and as a false alarm: its CSI may "
        "lie below that of the smooth trend, while the CRPS of the ensemble and the probability-matched mean show the "
        f"gain. The null is {found}: the trend with residuals of training sequences added at random."
    )
    return [tag("p", aid, class_="aid")]


def _warnings(entries: Sequence[Entry]) -> list[Html]:
    """A sentence for each forecast with missing values, which bias its scores."""
    lost = {entry.label: entry.scores.get("missing_forecast_pixels") or 0 for entry in entries}
    return [
        tag(
            "p",
            f"{label} is NaN at {pixels:,} observed pixels, which no score counts. Do not compare its scores.",
            class_="warning",
        )
        for label, pixels in lost.items()
        if pixels
    ]


def _tiles(entries: Sequence[Entry]) -> Html:
    """The most important scores, each with that of the best baseline."""
    tiles = []
    for key in TILES:
        definition, value = DEFINITIONS[key], _scalar(entries[0], key)
        baselines = {entry.label: _scalar(entry, key) for entry in entries[1:] if _is_due(entry, key)}
        if _is_due(entries[0], key) and np.isfinite([value, *baselines.values()]).any():
            number = tag("b", definition.format(value))
            baseline = tag("small", _best_baseline(definition, baselines))
            tiles.append(tag("div", tag("span", definition.heading), number, baseline, class_="tile"))
    return tag("div", *tiles, class_="tiles")


def _is_due(entry: Entry, key: str) -> bool:
    """Whether a forecast of this kind has the score, even if undefined."""
    return key in entry.scores and (entry.members > 1 or key != "spread_skill_ratio")


def _best_baseline(definition: Definition, baselines: dict[str, float]) -> str:
    best = definition.best(baselines.values())
    name = next((label for label, value in baselines.items() if round(value, definition.digits) == best), None)
    undefined = sum(not np.isfinite(value) for value in baselines.values())
    texts = [f"best baseline {definition.format(best)} ({name})"] if name else []
    texts += [f"undefined for {undefined} of {len(baselines)} baselines"] if undefined else []
    return ", ".join(texts)


def _scalar(entry: Entry, key: str) -> float:
    found = entry.array(key)
    return np.nan if found is None else float(found)


def _differences(entries: list[Entry]) -> list[Html]:
    found, reference = bootstrap.differences(entries, bootstrap.REPLICATES)
    note = (
        f"Each forecast minus {entries[0].label}, with the 95 % interval of a paired bootstrap of "
        f"{bootstrap.REPLICATES} replicates. A replicate draws events with replacement, with all their sequences, and "
        "computes the scores of all forecasts from them. The verdict is “unclear” if the interval holds zero. CRPS "
        "depends on the number of members, CRPS fair does not."
    )
    return [tag("p", note, class_="note"), tables.differences(entries, found, reference)]


def _score_sections(entries: list[Entry]) -> list[Section]:
    literature = published_for(entries[0].evaluation)
    return [
        Section("published", "Published", tables.published(entries, literature) if literature else []),
        Section("thresholds", "Thresholds", tables.by_threshold(entries)),
        *(Section(slug, title, panels(slug, draw(entries), entries, note)) for slug, title, draw, note in CHARTS),
    ]


def _closing_sections(entries: list[Entry], runs: list[Entry]) -> list[Section]:
    all_settings = tag("details", tag("summary", "Show all settings"), tables.settings(runs))
    return [
        Section("definitions", "Definitions", [tables.definitions(entries)]),
        Section("provenance", "Provenance", [tables.facts(runs), all_settings]),
    ]
