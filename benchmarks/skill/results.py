"""Scores, differences, tables and reports of the small benchmark, see `benchmarks.skill`."""

import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.skill.pictures import draw_results
from benchmarks.skill.tables import interval, mean_of, number, table_head, table_row
from diffcast.evaluation.results import without_nan
from diffcast.report import write_comparison
from diffcast.report.bootstrap import REPLICATES, Difference, differences
from diffcast.report.evaluation import Entry, find_entry, load_evaluation
from utils.files import replacing
from utils.provenance import ROOT, provenance

SCORES = {  # key -> heading
    "csi": "CSI-M",
    "csi_181": "CSI 181",
    "csi_219": "CSI 219",
    "csi_pool4": "CSI-pool4",
    "csi_pool16": "CSI-pool16",
    "hss": "HSS",
    "crps": "CRPS",
    "ssim": "SSIM",
    "spectrum_ratio_high": "octave",
}
DIGITS = {"crps": 4, "spectrum_ratio_high": 2}  # others: 3
TITLES = {"simvp": "SimVP", "convgru": "ConvGRU", "phydnet": "PhyDNet", "earthformer": "Earthformer"}
FORECASTS = {  # label -> training, forecast of its evaluation ("" is the evaluated one)
    "DiffCast": ("diffcast", ""),
    "its backbone": ("diffcast", "trend"),
    "its backbone, dressed": ("diffcast", "dressed"),
    "backbone alone": ("alone", ""),
    "backbone alone, dressed": ("alone", "dressed"),
}
BASELINES = {  # label -> forecast of the evaluation of advection
    "persistence": "persistence",
    "advection": "",
    "advection, dressed": "dressed",
}
COURSES = ("csi_per_lead", "csi_pool4_per_lead", "crps_per_lead", "spectrum_frequency", "spectrum", "spectrum_target")
REPRODUCED = ("crps", "csi_pool4")
MEMBERS_MEAN = ("ensemble_mean", "pm_mean")
STANDARD_ERRORS = 2 * 1.96  # in a 95 % interval
STORED = ROOT / "resources" / "benchmark" / "results.json"

Runs = Mapping[str, Mapping[int, Mapping[str, object]]]  # backbone -> seed -> stage -> training


def collect(runs: Runs, baselines: Path, cpu_seconds: Callable[[str], float]) -> dict:
    """Collect scores and differences by backbone and seed, JSON-ready."""
    backbones = {
        name: {str(seed): _collect_seed(stages, baselines, cpu_seconds) for seed, stages in seeds.items()}
        for name, seeds in runs.items()
    }
    about = {"about": provenance(), "data": "synthetic storms", "replicates": REPLICATES}
    return without_nan(about | {"backbones": backbones})


def _collect_seed(stages: Mapping[str, object], baselines: Path, cpu_seconds: Callable[[str], float]) -> dict:
    entries = {label: find_entry(name) for label, name in _entry_names(stages, baselines).items()}
    found, _ = differences(list(entries.values()), REPLICATES)
    return {
        "training_steps": {stage: training_steps(run.folder) for stage, run in stages.items()},
        "cpu_seconds": {stage: cpu_seconds(run.name) for stage, run in stages.items()},
        "scores": {label: scores_of(entry) for label, entry in entries.items()},
        "difference_to": {
            label: {key: _of_diffcast(difference) for key, difference in each.items()}
            for label, each in zip(list(entries)[1:], found, strict=True)
        },
    }


def _entry_names(stages: Mapping[str, object], baselines: Path) -> dict[str, str]:
    """Map labels to names of forecasts in `find_entry` and the report, DiffCast's first."""
    named = {label: (stages[stage].folder, forecast) for label, (stage, forecast) in FORECASTS.items()}
    named |= {label: (baselines, forecast) for label, forecast in BASELINES.items()}
    return {label: f"{folder}:{forecast}" if forecast else str(folder) for label, (folder, forecast) in named.items()}


def training_steps(evaluation: Path) -> int:
    """How long the evaluated forecaster was trained."""
    return load_evaluation(evaluation).metrics["settings"]["training_steps"]


def scores_of(entry: Entry) -> dict:
    """The scores of the tables, and their course over lead time."""
    thresholds = [f"csi_{threshold:g}" for threshold in entry.evaluation.source["thresholds"]]
    found = entry.scores | dict(zip(thresholds, entry.scores["csi_per_threshold"], strict=True))
    kept = {key: found.get(key) for key in (*SCORES, *thresholds, "mae", "crps_fair", "spread_skill_ratio")}
    kept |= {key: found.get(key) for key in COURSES}
    for mean in MEMBERS_MEAN:
        if mean in found:
            kept[mean] = {key: found[mean].get(key) for key in ("csi", "csi_pool4", "hss", "mae", "csi_per_lead")}
    return kept


def _of_diffcast(difference: Difference) -> dict:
    """Return DiffCast's score minus the other's, the bootstrap's difference reversed."""
    value, low, high = -difference.value, -difference.high, -difference.low
    return {"value": value, "low": low, "high": high, "standard_error": (high - low) / STANDARD_ERRORS}


def write_results(results: dict, runs: Runs, baselines: Path, folder: Path) -> None:
    """Write numbers, tables, pictures, and a report of each backbone's first seed."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    with replacing(folder / "results.md") as temporary:
        temporary.write_text("\n".join(_page(results)) + "\n")
    draw_results(results["backbones"], folder)
    for name, seeds in runs.items():
        named = _entry_names(next(iter(seeds.values())), baselines)
        write_comparison(list(named.values()), folder / f"report_{name}.html", list(named))


def summary(backbones: dict) -> list[str]:
    """Lay out the tables of the documents: mean scores, and differences in CRPS."""
    scores = table_head(["", *SCORES.values()])
    margins = table_head(["CRPS of DiffCast minus that of", "seed", *(f"{label}, %" for label in list(FORECASTS)[1:])])
    for name, seeds in backbones.items():
        title = TITLES[name]
        names = (
            f"**DiffCast around {title}**",
            f"its {title}",
            "the same, dressed",
            f"{title} alone",
            "the same, dressed",
        )
        scores += [_score_row(row, label, seeds) for row, label in zip(names, FORECASTS, strict=True)]
        margins += [table_row([title, seed, *_margins(found)]) for seed, found in seeds.items()]
    scores += [_score_row(label, label, seeds) for label in BASELINES]
    return [*scores, "", *margins]


def _score_row(row: str, label: str, seeds: dict) -> str:
    each = [seed["scores"][label] for seed in seeds.values()]
    means = {key: mean_of([scores[key] for scores in each]) for key in SCORES}
    return table_row([row, *(number(mean, DIGITS.get(key, 3)) for key, mean in means.items())])


def _margins(found: dict) -> list[str]:
    """Difference in % of DiffCast's CRPS from those of other forecasts with backbones."""
    return [
        interval(found["difference_to"][label]["crps"], 100 / found["scores"][label]["crps"], digits=1)
        for label in list(FORECASTS)[1:]
    ]


def _page(results: dict) -> list[str]:
    """The tables in Markdown."""
    lines = [f"Scores on {results['data']}.", "", *summary(results["backbones"]), ""]
    for name, seeds in results["backbones"].items():
        lines += [f"## {name}", "", *_score_table(seeds), "", *_difference_table(seeds), "", _cost(seeds), ""]
    return lines + _reproduction_table(results["backbones"], json.loads(STORED.read_text())["backbones"])


def _score_table(seeds: dict) -> list[str]:
    """Lay out means over seeds, with the largest deviation of a seed in brackets."""
    lines = table_head(["", *SCORES.values()])
    for label in next(iter(seeds.values()))["scores"]:
        each = [seed["scores"][label] for seed in seeds.values()]
        lines.append(table_row([label, *(_mean([scores[key] for scores in each]) for key in SCORES)]))
        for mean, of in (("ensemble_mean", "ensemble mean"), ("pm_mean", "probability-matched mean")):
            if all(mean in scores for scores in each):
                values = [_mean([scores[mean].get(key) for scores in each]) for key in SCORES]
                lines.append(table_row([f"{label}, {of}", *values]))
    return lines


def _difference_table(seeds: dict) -> list[str]:
    """DiffCast minus each other forecast, seed by seed, with 95 % intervals."""
    others = next(iter(seeds.values()))["difference_to"]
    keys = [key for key in SCORES if key in next(iter(others.values()))]
    lines = table_head(["DiffCast minus", "seed", *(SCORES[key] for key in keys), "CRPS in %"])
    for label in others:
        for seed, found in seeds.items():
            difference, other = found["difference_to"][label], found["scores"][label]["crps"]
            cells = [interval(difference[key]) for key in keys]
            lines.append(table_row([label, seed, *cells, interval(difference["crps"], 100 / other, digits=1)]))
    return lines


def _reproduction_table(backbones: dict, stored: dict) -> list[str]:
    """Compare DiffCast's differences with stored ones of the same budget."""
    lines = table_head(["backbone", "seed", "DiffCast minus", "score", "here", "stored", "in the stored interval"])
    for name, seeds in backbones.items():
        for seed, here in seeds.items():
            there = stored.get(name, {}).get(seed, {})
            if there.get("training_steps") != here["training_steps"]:
                continue
            for label, key in itertools.product(list(FORECASTS)[1:], REPRODUCED):
                ours, theirs = (each["difference_to"][label][key] for each in (here, there))
                cells = [interval(ours | {"low": None}), interval(theirs), _within(ours, theirs)]
                lines.append(table_row([name, seed, label, SCORES[key], *cells]))
    note = "The intervals tell what other test events would change. On another machine, rounding makes other trainings."
    return ["## Compared with the results that come with the project", "", note, "", *lines]


def _within(here: dict, stored: dict) -> str:
    """Say whether a difference lies in the interval of another, if it has one."""
    if here["value"] is None or stored["low"] is None:
        return ""
    return "yes" if stored["low"] <= here["value"] <= stored["high"] else "**no**"


def _cost(seeds: dict) -> str:
    stages = next(iter(seeds.values()))["cpu_seconds"]
    mean = {stage: statistics.mean(seed["cpu_seconds"][stage] for seed in seeds.values()) for stage in stages}
    share = (mean["start"] + mean["diffcast"]) / mean["alone"]
    parts = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in mean.items())
    return f"Processor seconds, evaluations included: {parts}; (start + diffcast) / alone = {share:.2f}."


def _mean(values: list[float | None]) -> str:
    mean = mean_of(values)
    if mean is None:
        return ""
    return f"{mean:.4f}" + (f" ({max(abs(value - mean) for value in values):.4f})" if len(values) > 1 else "")
