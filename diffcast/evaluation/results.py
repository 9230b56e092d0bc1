"""Results of an evaluation: table, curves over lead times, JSON."""

import csv
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from dataset.source import Source
from dataset.units import same_units
from utils.files import replacing
from utils.log import format_table

LOG = logging.getLogger(__name__)
TABLE = ["csi", "csi_pool4", "csi_pool16", "pod", "far", "hss", "mse", "mae", "ssim", "lpips", "crps"]


def describe_source(source: Source, model: nn.Module) -> dict:
    """Describe the frames that a forecaster forecasts, JSON-ready."""
    return {
        "name": source.name,
        "synthetic": source.synthetic,
        "scale": source.scale,
        "offset": source.offset,
        "units": source.units,
        "thresholds": list(source.thresholds),
        "interval": source.interval,
        "pixel_km": source.extent / model.frame_shape[2],
        "frame_shape": list(model.frame_shape),
        "frames_in": model.frames_in,
        "frames_out": model.frames_out,
    }


def data_differences(trained: object, found: dict) -> list[str]:
    """List differences of two sources that matter to weights.

    Each is written as `name theirs / ours`.

    `trained` comes from a checkpoint: there may be none, and what it does not tell is no difference.
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
    """Format the most important scores, a row per forecast."""
    fields = list(_fields(scores))
    columns = [score for score in TABLE if any(score in values for _, values in fields)]
    rows = [[label, *(_number(values.get(score)) for score in columns)] for label, values in fields]
    return format_table(["", *columns], rows)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def write_lead_times(path: Path, scores: dict[str, dict], source: dict) -> None:
    """Write the curves over lead times as CSV.

    There is a line per forecast and lead time (minutes), and a column per score and threshold.
    """
    curves = {label: _curves(values, source["thresholds"]) for label, values in _fields(scores)}
    columns = list(dict.fromkeys(name for of_one in curves.values() for name in of_one))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["data", "forecast", "lead_minutes", *columns])
        for label, of_one in curves.items():
            for lead in range(source["frames_out"]):
                cells = [of_one[name][lead] if name in of_one else "" for name in columns]
                writer.writerow([source["name"], label, (lead + 1) * source["interval"], *cells])


def _fields(scores: dict[str, dict]) -> Iterator[tuple[str, dict]]:
    """Yield each forecast, followed by its ensemble means."""
    for name, values in scores.items():
        yield name, values
        for key, label in {"ensemble_mean": "ensemble mean", "pm_mean": "probability-matched mean"}.items():
            if key in values:
                yield f"{name} ({label})", values[key]


def _curves(values: dict, thresholds: list[float]) -> dict[str, list[float]]:
    curves = {}
    for key, value in values.items():
        if key.endswith("_per_lead") and not isinstance(value[0], list):
            curves[key.removesuffix("_per_lead")] = value
        elif key.endswith("_per_threshold_lead"):
            name = key.removesuffix("_per_threshold_lead")
            curves |= {f"{name}_{k:g}": of_one for k, of_one in zip(thresholds, value, strict=True)}
    return curves


def write_metrics(path: Path, report: dict) -> None:
    """Write the report of an evaluation as JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(without_nan(report), indent=1, allow_nan=False) + "\n")


def warn_of_gaps(scores: dict[str, dict]) -> None:
    """Warn of forecasts that are NaN where the target is valid.

    Such pixels count in the score of no forecast.
    """
    for name, values in scores.items():
        if missing := values.get("missing_forecast_pixels", 0):
            LOG.warning("%s is NaN in %d pixels where the target is known; its scores leave them out", name, missing)


def without_nan(value):
    """Replace NaN and infinity, which JSON cannot hold, by None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
