"""What each score is called, which way is better, how many digits it deserves, and what it means."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

UNDEFINED, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Definition:
    """A scalar score; `meaning` is one sentence that says how it is reduced."""

    label: str
    better: Literal["higher", "lower", "one", "neither"]
    digits: int
    meaning: str

    @property
    def heading(self) -> str:
        """The label with the direction of improvement."""
        return self.label + {"higher": " ↑", "lower": " ↓", "one": " → 1", "neither": ""}[self.better]

    def gain(self, value: float, reference: float) -> float:
        """How much better `value` is than `reference`: positive is better."""
        sign = {"higher": 1, "lower": -1}.get(self.better)
        return sign * (value - reference) if sign else abs(reference - 1) - abs(value - 1)

    def best(self, values: Iterable[float]) -> float:
        """The best of some values, at the digits shown; NaN if there is none."""
        values = np.round([value for value in values if not np.isnan(value)], self.digits)
        if not len(values) or self.better == "neither":
            return np.nan
        return float(values[np.argmax([self.gain(value, 0.0) for value in values])])

    def format(self, value: float | None, sign: str = "") -> str:
        """The value with its digits; a dash if it is undefined. `sign="+"` shows the sign always."""
        if value is None or np.isnan(value):
            return UNDEFINED
        return f"{value:{sign}.{self.digits}f}".replace("-", MINUS).replace("inf", "∞")


LEAD_MEAN = "mean over thresholds and lead times of each cell's score, an empty cell scoring 0 (Yu et al. 2024)"
FRAME_MEAN = "per frame over its valid pixels, then averaged over sequences and members, then over lead times"
PIXEL_MEAN = "averaged over all pixels, sequences and lead times"

DEFINITIONS = {
    "csi": Definition(
        "CSI",
        "higher",
        4,
        f"Critical success index, hits / (hits + misses + false alarms): {LEAD_MEAN}.",
    ),
    "csi_total": Definition(
        "CSI total",
        "higher",
        4,
        "CSI of counts summed over sequences and lead times, then averaged over thresholds (Gao et al. 2022).",
    ),
    "csi_pool4": Definition(
        "CSI pool 4",
        "higher",
        4,
        "CSI total of fields reduced to the maximum of each block of 4 by 4 pixels, forgiving small displacements; "
        "undefined as soon as one threshold is neither forecast nor observed anywhere (Yu et al. 2024).",
    ),
    "csi_pool16": Definition(
        "CSI pool 16",
        "higher",
        4,
        "As CSI pool 4, with blocks of 16 by 16 pixels: rewards cells in the right region.",
    ),
    "hss": Definition(
        "HSS",
        "higher",
        4,
        f"Heidke skill score, the share of correct pixels beyond chance (0 is chance): {LEAD_MEAN}.",
    ),
    "hss_total": Definition("HSS total", "higher", 4, "HSS of counts summed over sequences and lead times."),
    "ets": Definition(
        "ETS", "higher", 4, f"Equitable threat score, CSI less the hits expected by chance: {LEAD_MEAN}."
    ),
    "pod": Definition("POD", "higher", 4, f"Probability of detection, hits / observed events: {LEAD_MEAN}."),
    "far": Definition("FAR", "lower", 4, f"False alarm ratio, false alarms / forecast events: {LEAD_MEAN}."),
    "bias": Definition(
        "Bias",
        "one",
        3,
        "Frequency bias, forecast / observed events: mean over thresholds and lead times where anything was observed; "
        "below 1 the forecast is too dry.",
    ),
    "mse": Definition("MSE", "lower", 1, f"Mean squared error in squared units of the data: {FRAME_MEAN}."),
    "mae": Definition("MAE", "lower", 3, f"Mean absolute error in units of the data: {FRAME_MEAN}."),
    "rmse": Definition("RMSE", "lower", 3, f"Root mean squared error in units of the data: {FRAME_MEAN}."),
    "psnr": Definition(
        "PSNR", "higher", 2, f"Peak signal-to-noise ratio in dB: {FRAME_MEAN}; infinite with one perfect frame."
    ),
    "ssim": Definition(
        "SSIM",
        "higher",
        4,
        f"Structural similarity with a Gaussian window of 11 pixels (Wang et al. 2004): {FRAME_MEAN}.",
    ),
    "spectrum_ratio_high": Definition(
        "Fine-scale power",
        "one",
        3,
        "Power at wavelengths below 4 pixels relative to the observation's: below 1 the forecast is blurred.",
    ),
    "crps": Definition(
        "CRPS",
        "lower",
        5,
        "Continuous ranked probability score of the members' empirical distribution, values in [0, 1] (Matheson and "
        f"Winkler 1976), {PIXEL_MEAN}; for one member it is the mean absolute error.",
    ),
    "crps_fair": Definition(
        "CRPS fair",
        "lower",
        5,
        "CRPS that infinitely many members of the same quality would get (Ferro 2014): compares ensembles of "
        f"different size; {PIXEL_MEAN}.",
    ),
    "spread": Definition(
        "Spread",
        "neither",
        5,
        f"Root of the members' variance, values in [0, 1], {PIXEL_MEAN} before the root: √(M / (M + 1)) times the "
        "skill if an ensemble of M members is reliable.",
    ),
    "skill": Definition(
        "Skill",
        "lower",
        5,
        f"Root mean squared error of the ensemble mean, values in [0, 1], {PIXEL_MEAN} before the root.",
    ),
    "spread_skill_ratio": Definition(
        "Spread / skill",
        "one",
        3,
        "Spread over skill, corrected for the number of members: 1 for a reliable ensemble, below 1 when it is "
        "overconfident (Fortin et al. 2014).",
    ),
    "brier": Definition(
        "Brier",
        "lower",
        5,
        f"Brier score, the mean squared error of the exceedance probability per threshold, {PIXEL_MEAN}.",
    ),
    "roc_area": Definition(
        "ROC area",
        "higher",
        4,
        "Area below the curve of detection against false detection: the chance that a pixel with the event gets the "
        "higher probability; 0.5 is no skill (Mason and Graham 2002).",
    ),
}
DIAGRAMS = {
    "ensemble_mean": (
        "Ensemble mean",
        "The pixelwise mean of the members, scored as one forecast; other rows score every member as one "
        "more sequence.",
    ),
    "pm_mean": (
        "Probability-matched mean",
        "The pattern of the ensemble mean with the distribution of values of the members (Ebert 2001).",
    ),
    "fss_per_threshold_scale": (
        "FSS",
        "Fractions skill score: agreement of the share of pixels with the event in a window around each pixel, sums "
        "over sequences and lead times taken before the ratio (Roberts and Lean 2008); useful above 0.5 plus half the "
        "event's frequency.",
    ),
    "rank_histogram": (
        "Rank histogram",
        "Where the observation falls among the sorted members, ties shared evenly (Hamill 2001): flat if "
        "reliable, U-shaped if overconfident.",
    ),
    "reliability_observed_frequency": (
        "Reliability",
        "How often the event happened when a given share of the members forecast it (Bröcker and Smith "
        "2007): on the diagonal if reliable.",
    ),
    "spectrum": (
        "Power spectrum",
        "Radially averaged power of the field, averaged over frames and members (Harris et al. 2001).",
    ),
}
