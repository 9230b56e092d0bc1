"""What a report takes for granted about `metrics.json`: types, ranges, and shapes that fit each other."""

import math

import numpy as np

from utils.report.definitions import DEFINITIONS

SECTIONS = ("about", "settings", "evaluation", "checkpoint")
VARIANTS = ("ensemble_mean", "pm_mean")
# Axes: K thresholds, T lead times, S windows of the FSS, R bins of the spectrum, N = M + 1 and W = M + 2 for M members.
AXES = {
    **dict.fromkeys(DEFINITIONS, ""),
    **dict.fromkeys(("perfect_frames", "missing_forecast_pixels", "csi_empty_cells"), ""),
    **dict.fromkeys(("brier", "brier_fair", "roc_area"), "K"),
    **dict.fromkeys(("rank_histogram", "rank_histogram_wet", "reliability_probability"), "N"),
    **dict.fromkeys(("reliability_observed_frequency", "reliability_count"), "KN"),
    **dict.fromkeys(("roc_pod", "roc_pofd"), "KW"),
    **dict.fromkeys(("spectrum", "spectrum_target", "spectrum_frequency"), "R"),
    **dict.fromkeys(("spectrum_per_lead", "spectrum_target_per_lead"), "TR"),
    "rank_histogram_per_lead": "TN",
    "fss_scales": "S",
}
SUFFIXES = {  # the first that fits counts
    "_per_threshold_scale_lead": "KST",
    "_per_threshold_scale": "KS",
    "_per_threshold_lead": "KT",
    "_per_threshold": "K",
    "_per_lead": "T",
}


class SchemaError(ValueError):
    """The first thing that is wrong, as the end of a sentence that begins with the file."""


def check_metrics(metrics: object) -> None:
    """Raise `SchemaError` unless a report can be made of the parsed `metrics.json`; unknown keys are ignored."""
    if not isinstance(metrics, dict) or not all(_is_filled(metrics.get(key)) for key in ("scores", "source")):
        raise SchemaError('lacks "scores" or "source"')
    _check_source(metrics["source"])
    for name in SECTIONS:
        _require(isinstance(metrics.get(name) or {}, dict), f'holds "{name}" that is no table')
    _require(_is_count(metrics.get("sequences", 1)), 'holds "sequences" that is no number above 0')
    for key in ("members", "sampling_steps"):
        count = (metrics.get("evaluation") or {}).get(key)
        _require(count is None or _is_count(count), f'holds "evaluation" whose "{key}" is no number above 0')
    _check_cases(metrics.get("cases"))
    known = {"K": len(metrics["source"]["thresholds"]), "T": metrics["source"]["frames_out"]}
    for forecast, scores in metrics["scores"].items():
        _require(isinstance(scores, dict), f'holds "scores" of "{forecast}" that are no table')
        _check_scores(scores, known, forecast)


def _check_source(source: dict) -> None:
    for key in ("scale", "interval", "thresholds", "frames_out"):
        _require(key in source, f'does not tell the "{key}" of its source')
    for key in ("scale", "interval", "pixel_km"):
        value = source.get(key)
        _require(
            _is_positive(value) or (key == "pixel_km" and value is None), f'has a source whose "{key}" is {value!r}'
        )
    thresholds, offset = source["thresholds"], source.get("offset", 0)
    _require(_is_number(offset), f'has a source whose "offset" is {offset!r}')
    ascending = isinstance(thresholds, list) and thresholds and all(map(_is_number, thresholds))
    _require(
        ascending and thresholds == sorted(set(thresholds)) and thresholds[0] > offset,
        f'has a source whose "thresholds" do not ascend from above {offset:g}',
    )
    for key in ("frames_in", "frames_out"):
        _require(_is_count(source.get(key, 1)), f'has a source whose "{key}" is no number above 0')
    shape = source.get("frame_shape", [1, 1, 1])
    whole = isinstance(shape, list) and len(shape) == 3 and all(map(_is_count, shape))
    _require(whole, 'has a source whose "frame_shape" is not [channels, height, width]')


def _check_cases(cases: object) -> None:
    _require(cases is None or isinstance(cases, list), 'holds "cases" that are no list')
    for case in cases or []:
        _require(isinstance(case, dict), 'holds "cases" one of which is no table')
        pictures = case.get("pictures") or []
        named = isinstance(pictures, list) and all(isinstance(picture, str) for picture in pictures)
        _require(named, 'holds a case whose "pictures" are no file names')


def _check_scores(scores: dict, known: dict[str, int], where: str) -> None:
    """Axes of the same letter must agree, in all scores of a forecast as far as the letter depends on the forecast."""
    known = dict(known)
    for key, value in scores.items():
        axes = axes_of(key)
        if axes is not None and value is not None:
            _check_shape(value, axes, known, f"{where}: {key}")
    counts = scores.get("counts", {})
    _require(isinstance(counts, dict), f'holds "{where}: counts" that are no table')
    for key, value in counts.items():
        _check_shape(value, "KT", known, f"{where}: counts: {key}")
    _require(known.get("N", 2) >= 2, f'holds ensemble scores of no members for "{where}"')
    for variant in VARIANTS:
        if variant in scores:
            _require(isinstance(scores[variant], dict), f'holds "{where}: {variant}" that is no table')
            _check_scores(scores[variant], known, f"{where}: {variant}")
    for key in ("fss_scales", "spectrum_frequency"):
        values = np.asarray(scores.get(key) or [1], dtype=np.float64)
        _require(values.min() >= 0 and values.max() > 0, f'holds "{where}: {key}" that is not above 0')


def axes_of(key: str) -> str | None:
    """The axes of a score, a letter each; None if its key says nothing about them."""
    return AXES.get(key, next((axes for suffix, axes in SUFFIXES.items() if key.endswith(suffix)), None))


def _check_shape(value: object, axes: str, known: dict[str, int], where: str) -> None:
    """Check the shape of nested lists against the axes, and note the size of those that are not known yet."""
    try:
        shape = np.asarray(value, dtype=np.float64).shape
    except (TypeError, ValueError, OverflowError):
        raise SchemaError(f'holds "{where}" that is not of numbers') from None
    expected = "(" + ", ".join(str(known.get(axis, "n")) for axis in axes) + ")"
    fits = len(shape) == len(axes) and all(
        known.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True)
    )
    found = "(" + ", ".join(map(str, shape)) + ")"
    _require(fits, f'holds "{where}" of shape {found}, not {expected}')


def _require(condition: object, otherwise: str) -> None:
    if not condition:
        raise SchemaError(otherwise)


def _is_filled(value: object) -> bool:
    return isinstance(value, dict) and bool(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
