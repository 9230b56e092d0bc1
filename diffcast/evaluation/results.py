"""The results of an evaluation as a table, curves and JSON."""

import csv
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from torch import nn

from dataset.source import Source
from dataset.transform import Transform
from dataset.units import same_units
from utils.errors import InputError
from utils.files import replacing
from utils.log import format_table

LOG = logging.getLogger(__name__)
METRICS = "metrics.json"
MEANS = {"ensemble_mean": "ensemble mean", "pm_mean": "probability-matched mean"}  # fields made of the members
TABLE = [
    "csi",
    "csi_pool4",
    "csi_pool16",
    "pod",
    "far",
    "hss",
    "mse",
    "mae",
    "ssim",
    "lpips",
    "crps",
    "csi_warning",
    "rank_deviation_wet",
]


def describe_source(source: Source, model: nn.Module) -> dict:
    """Describe the frames that a model forecasts, JSON-ready."""
    return {
        "name": source.name,
        "synthetic": source.synthetic,
        "scale": source.scale,
        "offset": source.offset,
        "units": source.units,
        "transform": asdict(source.transform) if source.transform else None,
        "thresholds": list(source.thresholds),
        "interval": source.interval,
        "pixel_km": source.extent / model.frame_shape[2],
        "frame_shape": list(model.frame_shape),
        "frames_in": model.frames_in,
        "frames_out": model.frames_out,
    }


def described_source(description: object) -> Source:
    """The source that `describe_source` described, without thresholds, colours and extent.

    `description` comes from a checkpoint. Raises `InputError` if it is none.
    """
    described = {"offset": 0.0} | (description if isinstance(description, dict) else {})
    try:
        shape = described.get("transform")
        numbers = {name: float(described[name]) for name in ("scale", "offset", "interval")}
        transform = Transform(**{name: float(value) for name, value in shape.items()}) if shape else None
        possible = all(map(math.isfinite, numbers.values())) and numbers["scale"] > 0
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        possible = False
    if not possible:
        raise InputError("the checkpoint does not say what its frames stand for; give their source.")
    texts = {key: str(described.get(key)) for key in ("name", "units")}
    return Source(thresholds=(), bounds=(), colors=(), extent=math.nan, transform=transform, **texts, **numbers)


def data_differences(trained: object, found: dict) -> list[str]:
    """List where two sources differ in what weights depend on.

    An item reads `key trained / found`. `trained` comes from a checkpoint. It may be None, and a key that it lacks is
    no difference, except that weights without a transform are of frames without one.
    """
    if not isinstance(trained, dict):
        return []
    units, interval = (trained.get(key, found[key]) for key in ("units", "interval"))
    same = {
        "units": isinstance(units, str) and same_units(units, found["units"]),
        "interval": interval == found["interval"],
    }
    differing = [f"{key} {trained[key]!r} / {found[key]!r}" for key, equal in same.items() if not equal]
    if not _same_range(trained, found):
        differing.append(f"range {_range(trained)} / {_range(found)}")
    if trained.get("transform") != found["transform"]:
        differing.append(f"transform {trained.get('transform') or 'none'} / {found['transform'] or 'none'}")
    return differing


def _same_range(trained: dict, found: dict) -> bool:
    try:
        return all(
            math.isclose(trained.get(key, found[key]), found[key], rel_tol=1e-6, abs_tol=1e-6 * found["scale"])
            for key in ("scale", "offset")
        )
    except TypeError:
        return False


def _range(source: dict) -> str:
    low, scale = source.get("offset", 0.0), source.get("scale")
    numbers = isinstance(low, int | float) and isinstance(scale, int | float)
    return f"[{low:g}, {low + scale:g}]" if numbers else "unknown"


def score_table(scores: dict[str, dict]) -> str:
    """The most important scores as text, a row per forecast."""
    fields = list(_labelled(scores))
    columns = [score for score in TABLE if any(score in values for _, values in fields)]
    rows = [[label, *(_number(values.get(score)) for score in columns)] for label, values in fields]
    return format_table(["", *columns], rows)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def write_lead_times(path: Path, scores: dict[str, dict], source: dict) -> None:
    """Write a CSV file with a line per forecast and lead time.

    Each score has a column, or a column per threshold.
    """
    curves = {label: _curves(values, source["thresholds"]) for label, values in _labelled(scores)}
    columns = list(dict.fromkeys(name for of_one in curves.values() for name in of_one))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["data", "forecast", "lead_minutes", *columns])
        for label, of_one in curves.items():
            for lead in range(source["frames_out"]):
                cells = [of_one[name][lead] if name in of_one else "" for name in columns]
                writer.writerow([source["name"], label, (lead + 1) * source["interval"], *cells])


def fields_of(values: dict) -> Iterator[tuple[str, dict]]:
    """Label and scores of the ensemble mean and similar fields."""
    return ((label, values[key]) for key, label in MEANS.items() if key in values)


def _labelled(scores: dict[str, dict]) -> Iterator[tuple[str, dict]]:
    """Each forecast, followed by the fields made of its members."""
    for name, values in scores.items():
        yield name, values
        yield from ((f"{name} ({label})", of_field) for label, of_field in fields_of(values))


def _curves(values: dict, thresholds: list[float]) -> dict[str, list[float]]:
    curves = {}
    for key, value in values.items():
        if key.endswith("_per_lead") and not isinstance(value[0], list):
            curves[key.removesuffix("_per_lead")] = value
        elif key.endswith("_per_threshold_lead"):
            name = key.removesuffix("_per_threshold_lead")
            curves |= {f"{name}_{k:g}": of_one for k, of_one in zip(thresholds, value, strict=True)}
    return curves


def write_metrics(folder: Path, metrics: dict) -> None:
    """Write `metrics.json`, the results of an evaluation."""
    with replacing(folder / METRICS) as temporary:
        temporary.write_text(json.dumps(without_nan(metrics), indent=1, allow_nan=False) + "\n")


def read_metrics(folder: Path) -> dict:
    """Read `metrics.json`. Raises `InputError` if no evaluation wrote it."""
    path = folder / METRICS
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError:
        metrics = None
    if not (isinstance(metrics, dict) and metrics.get("scores") and metrics.get("source")):
        raise InputError(f"{path} is not the result of an evaluation; evaluate that run again.")
    return metrics


def warn_of_gaps(scores: dict[str, dict]) -> None:
    """Warn of forecasts that are NaN at observed pixels."""
    for name, values in scores.items():
        if missing := values.get("missing_forecast_pixels", 0):
            LOG.warning("%s is NaN at %d observed pixels; its scores leave them out", name, missing)


def without_nan(value):
    """The same structure with None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
