"""The charts of a report.

Each function returns the panels of a section, and none if no entry has the scores.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from dataset.source import physical
from diffcast.report.evaluation import Entry
from diffcast.report.svg import Chart, Curve

SOLID, DASHED = "-", (0, (4, 2))
SPREAD_TITLE = "Skill (solid), corrected spread (dashed)"
Axis = tuple[float, float]


def lead_curves(entries: Sequence[Entry], score: str, label: str) -> list[Chart]:
    """CSI or HSS against lead time, one panel per threshold.

    The ensemble mean is dashed.
    """
    key = f"{score}_per_threshold_lead"
    values = _with_ensemble_mean(entries, key)
    top = max((np.nanmax(curve) for _, _, curve in values), default=0)
    bottom = min((np.nanmin(curve) for _, _, curve in values), default=0)  # HSS is negative where worse than chance
    lead, axis = _lead_times(entries), _lead_axis(entries)
    return [
        Chart(
            title=title,
            y_label=label,
            curves=[Curve(lead, curve[k], i, *style) for i, style, curve in values],
            y_range=(min(0.0, 1.08 * bottom), min(1.0, 1.08 * max(top, 0.0) + 0.01)),
            **axis,
        )
        for k, title in enumerate(threshold_titles(entries[0]) if values else [])
    ]


def ensemble_curves(entries: Sequence[Entry]) -> list[Chart]:
    """CRPS, fair CRPS, spread with skill, and their ratio against lead time.

    The spread of M members is multiplied by sqrt((M + 1) / M). The product equals the skill if the ensemble is reliable
    (Fortin et al. 2014).
    """
    lead, axis = _lead_times(entries), _lead_axis(entries)
    crps = [Curve(lead, values, i) for i, values in _arrays(entries, "crps_per_lead")]
    fair = [Curve(lead, values, i) for i, values in _arrays(entries, "crps_fair_per_lead")]
    skill, spread = _arrays(entries, "skill_per_lead"), _arrays(entries, "spread_per_lead")
    both = [Curve(lead, values, i) for i, values in skill if i in dict(spread)]
    both += [Curve(lead, _corrected(values, entries[i].members), i, DASHED) for i, values in spread]
    ratio = [Curve(lead, values, i) for i, values in _arrays(entries, "spread_skill_ratio_per_lead")]
    one = Curve(axis["x_range"], (1, 1))
    return [
        *_chart("CRPS", "CRPS, values in [0, 1]", crps, y_range=_from_zero(crps), **axis),
        *_chart("Fair CRPS", "CRPS, values in [0, 1]", fair, y_range=_from_zero(crps), **axis),
        *_chart(SPREAD_TITLE, "RMS, values in [0, 1]", both, y_range=_from_zero(both), **axis),
        *_chart("Corrected spread / skill", "ratio", ratio, [one], y_range=_from_zero([*ratio, one]), **axis),
    ]


def _corrected(spread: np.ndarray, members: int) -> np.ndarray:
    return spread * np.sqrt((members + 1) / members)


def rank_histograms(entries: Sequence[Entry]) -> list[Chart]:
    """Frequency of each rank of the observation, relative to a flat histogram."""
    panels = []
    for title, key in (("All pixels", "rank_histogram"), ("Wet pixels", "rank_histogram_wet")):
        curves = [
            Curve(np.linspace(0, 1, len(values) + 1), len(values) * values, i, stairs=True)
            for i, values in _arrays(entries, key)
        ]
        x_label, y_label = "rank of the observation / number of ranks", "frequency relative to flat"
        flat = Curve((0, 1), (1, 1))
        range_ = _from_zero([*curves, flat])
        panels += _chart(title, y_label, curves, [flat], x_label=x_label, x_range=(0, 1), y_range=range_)
    return panels


def reliability(entries: Sequence[Entry]) -> list[Chart]:
    """Observed frequency against forecast probability, above the number of pixels per probability."""
    frequency = _arrays(entries, "reliability_observed_frequency")
    number = dict(_arrays(entries, "reliability_count"))
    panels = []
    for k, title in enumerate(threshold_titles(entries[0])):
        curves, counts = [], []
        for i, values in frequency:
            probability = np.linspace(0, 1, values.shape[1])
            curves.append(Curve(probability, values[k], i))
            if i in number:
                edges = (np.arange(values.shape[1] + 1) - 0.5) / (values.shape[1] - 1)
                counts.append(Curve(edges, np.where(number[i][k] > 0, number[i][k], np.nan), i, stairs=True))
        counts = [curve for curve in counts if np.isfinite(curve.y).any()]
        labels = {"x_label": "forecast probability", "x_range": (-0.05, 1.05), "y_range": (-0.03, 1.03)}
        panels += _chart(title, "observed frequency", curves, [Curve((0, 1), (0, 1))], counts=counts, **labels)
    return panels


def roc(entries: Sequence[Entry]) -> list[Chart]:
    """Probability of detection against probability of false detection, one panel per threshold."""
    detection, false = _arrays(entries, "roc_pod"), dict(_arrays(entries, "roc_pofd"))
    panels = []
    for k, title in enumerate(threshold_titles(entries[0])):
        curves = [Curve(false[i][k], values[k], i) for i, values in detection if i in false]
        labels = {"x_label": "probability of false detection", "x_range": (0, 1), "y_range": (0, 1.02)}
        panels += _chart(title, "probability of detection", curves, [Curve((0, 1), (0, 1))], **labels)
    return panels


def spectra(entries: Sequence[Entry]) -> list[Chart]:
    """Power spectra, absolute and relative, and fine-scale power by lead time."""
    pixel = entries[0].evaluation.source["pixel_km"]
    power, ratio, observed = [], [], None
    for i, style, values in _with_ensemble_mean(entries, "spectrum"):
        frequency, target = entries[i].array("spectrum_frequency"), entries[i].array("spectrum_target")
        if frequency is None or target is None:
            continue
        wave = frequency > 0  # the mean has no wavelength
        wavelength = pixel / frequency[wave]
        observed = observed or Curve(wavelength, target[wave])
        power.append(Curve(wavelength, values[wave], i, *style))
        ratio.append(Curve(wavelength, _ratio(values[wave], target[wave]), i, *style))
    if observed is None:
        return []
    longest, shortest = np.max(observed.x), 2 * pixel
    ticks = [shortest * 2**n for n in range(16) if shortest * 2**n <= longest]
    axis = {"x_label": "wavelength (km)", "x_log": True, "x_range": (longest, shortest), "x_ticks": ticks}
    one = Curve((longest, shortest), (1, 1))
    top = _from_zero([*ratio, one])
    return [
        *_chart("Power, observation in black", "power", power, [observed], y_log=True, **axis),
        *_chart("Power relative to the observation", "ratio", ratio, [one], y_range=(0, min(top[1], 2.0)), **axis),
        *_fine_scales(entries, 4 * pixel),
    ]


def _fine_scales(entries: Sequence[Entry], wavelength: float) -> list[Chart]:
    lead, axis = _lead_times(entries), _lead_axis(entries)
    target = dict(_arrays(entries, "spectrum_target_per_lead"))
    curves = []
    for i, style, values in _with_ensemble_mean(entries, "spectrum_per_lead"):
        frequency = entries[i].array("spectrum_frequency")
        if frequency is not None and i in target:
            fine = frequency >= 0.25
            share = _ratio(values[:, fine].mean(axis=1), target[i][:, fine].mean(axis=1))
            curves.append(Curve(lead, share, i, *style))
    one = Curve(axis["x_range"], (1, 1))
    title = f"Power below {wavelength:g} km, relative"
    return _chart(title, "ratio", curves, [one], y_range=_from_zero([*curves, one]), **axis)


def fss(entries: Sequence[Entry]) -> list[Chart]:
    """FSS against the width of the window, one panel per threshold.

    The FSS of the exceedance probability is dashed.
    """
    scales = next((found for entry in entries if (found := entry.array("fss_scales")) is not None), None)
    if scales is None:
        return []
    width = scales * entries[0].evaluation.source["pixel_km"]
    members = _arrays(entries, "fss_per_threshold_scale")
    probability = _arrays(entries, "fss_probability_per_threshold_scale")
    useful = _useful_fss(entries)
    panels = []
    for k, title in enumerate(threshold_titles(entries[0])):
        curves = [Curve(width, values[k], i) for i, values in members]
        curves += [Curve(width, values[k], i, DASHED, "exceedance probability") for i, values in probability]
        reference = [] if useful is None else [Curve((width[0], width[-1]), (useful[k], useful[k]))]
        axis = {"x_label": "window (km)", "x_log": True, "x_ticks": width, "y_range": (0, 1.02)}
        panels += _chart(title, "FSS", curves, reference, **axis)
    return panels


def _useful_fss(entries: Sequence[Entry]) -> np.ndarray | None:
    """The useful FSS per threshold (Roberts and Lean 2008).

    It is 0.5 plus half the frequency of the event.
    """
    names = ("hits", "misses", "false_alarms", "correct_negatives")
    counts = [entries[0].array("counts", name) for name in names]
    if any(count is None for count in counts):
        return None
    hits, misses, *others = (count.sum(axis=1) for count in counts)
    return 0.5 + (hits + misses) / (hits + misses + sum(others)) / 2


def threshold_titles(entry: Entry, with_units: bool = True) -> list[str]:
    """Titles of the thresholds such as "≥ 133 VIL byte (3.5 kg/m²)"."""
    source = entry.evaluation.source
    units = f" {source['units']}" if with_units else ""
    meanings = [physical(threshold, source["units"]) for threshold in source["thresholds"]]
    return [
        f"≥\N{NO-BREAK SPACE}{threshold:g}{units}" + (f" ({meaning})" if meaning else "")
        for threshold, meaning in zip(source["thresholds"], meanings, strict=True)
    ]


def _chart(title: str, y_label: str, curves: list[Curve], references: Sequence[Curve] = (), **options) -> list[Chart]:
    """One panel, or none if all curves are undefined."""
    curves = [curve for curve in curves if np.isfinite(np.asarray(curve.y, dtype=np.float64)).any()]
    return [Chart(title=title, y_label=y_label, curves=[*references, *curves], **options)] if curves else []


def _arrays(entries: Sequence[Entry], key: str) -> list[tuple[int, np.ndarray]]:
    """Position and score of the entries that have it."""
    return [(i, values) for i, entry in enumerate(entries) if (values := entry.array(key)) is not None]


def _with_ensemble_mean(entries: Sequence[Entry], key: str) -> list[tuple[int, tuple, np.ndarray]]:
    """Position, line style and score of entries and their ensemble means."""
    found = [(i, (SOLID,), values) for i, values in _arrays(entries, key)]
    means = [(i, entry.array("ensemble_mean", key)) for i, entry in enumerate(entries)]
    return found + [(i, (DASHED, "ensemble mean"), values) for i, values in means if values is not None]


def _ratio(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Quotient that is NaN where the reference is 0."""
    return values / np.where(reference > 0, reference, np.nan)


def _lead_times(entries: Sequence[Entry]) -> np.ndarray:
    source = entries[0].evaluation.source
    return source["interval"] * np.arange(1, source["frames_out"] + 1)


def _lead_axis(entries: Sequence[Entry]) -> dict:
    """A lead time axis with ticks in equal, round steps of minutes."""
    last = float(_lead_times(entries)[-1])
    ticks = MaxNLocator(6, steps=[1, 1.5, 2, 3, 6, 10]).tick_values(0.0, last)
    return {"x_label": "lead time (min)", "x_range": (0.0, last), "x_ticks": ticks[ticks <= last]}


def _from_zero(curves: Sequence[Curve]) -> Axis:
    """A range that shows all curves and zero."""
    tops = [np.nanmax(curve.y) for curve in curves if np.isfinite(np.asarray(curve.y, dtype=np.float64)).any()]
    return (0.0, 1.08 * float(max(tops, default=1.0)) or 1.0)
