"""Names, directions, digits and meanings of the scores."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

UNDEFINED, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Definition:
    """A scalar score. `meaning` says how it is reduced."""

    label: str
    better: Literal["higher", "lower", "one", "neither"]
    digits: int
    meaning: str

    @property
    def heading(self) -> str:
        """The label with the direction of improvement."""
        return self.label + {"higher": " ↑", "lower": " ↓", "one": " → 1", "neither": ""}[self.better]

    def gain(self, value: float, reference: float) -> float:
        """The gain of `value` over `reference`, positive if better."""
        sign = {"higher": 1, "lower": -1}.get(self.better)
        return sign * (value - reference) if sign else abs(reference - 1) - abs(value - 1)

    def best(self, values: Iterable[float]) -> float:
        """The best value, rounded to the digits shown; may be NaN."""
        values = np.round([value for value in values if not np.isnan(value)], self.digits)
        if not len(values) or self.better == "neither":
            return np.nan
        return float(values[np.argmax([self.gain(value, 0.0) for value in values])])

    def format(self, value: float | None, sign: str = "") -> str:
        """The value with its digits, or a dash if it is undefined.

        `sign="+"` shows the sign always.
        """
        if value is None or np.isnan(value):
            return UNDEFINED
        return f"{value:{sign}.{self.digits}f}".replace("-", MINUS).replace("inf", "∞")


LEAD_MEAN = "Mean over thresholds and lead times, where an undefined cell counts as 0 (Yu et al. 2024)"
FRAME_MEAN = "Computed per frame over its valid pixels, then averaged over sequences, members and lead times"
PIXEL_MEAN = "Averaged over all pixels, sequences and lead times"

DEFINITIONS = {
    "csi": Definition(
        "CSI",
        "higher",
        4,
        f"Critical success index, hits / (hits + misses + false alarms). {LEAD_MEAN}.",
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
        "CSI total of fields reduced to the maximum of each block of 4 by 4 pixels. It forgives small displacements. "
        "Undefined if a threshold is neither forecast nor observed anywhere (Yu et al. 2024).",
    ),
    "csi_pool16": Definition(
        "CSI pool 16",
        "higher",
        4,
        "As CSI pool 4, with blocks of 16 by 16 pixels.",
    ),
    "hss": Definition(
        "HSS",
        "higher",
        4,
        f"Heidke skill score, the share of correct pixels beyond chance, which scores 0. {LEAD_MEAN}.",
    ),
    "hss_total": Definition("HSS total", "higher", 4, "HSS of counts summed over sequences and lead times."),
    "ets": Definition(
        "ETS", "higher", 4, f"Equitable threat score, the CSI without the hits expected by chance. {LEAD_MEAN}."
    ),
    "pod": Definition("POD", "higher", 4, f"Probability of detection, hits / observed events. {LEAD_MEAN}."),
    "far": Definition("FAR", "lower", 4, f"False alarm ratio, false alarms / forecast events. {LEAD_MEAN}."),
    "bias": Definition(
        "Bias",
        "one",
        3,
        "Frequency bias, forecast / observed events. Mean over thresholds and lead times with observed events. A "
        "forecast is too dry below 1.",
    ),
    "mse": Definition("MSE", "lower", 1, f"Mean squared error in squared units of the data. {FRAME_MEAN}."),
    "mae": Definition("MAE", "lower", 3, f"Mean absolute error in units of the data. {FRAME_MEAN}."),
    "rmse": Definition("RMSE", "lower", 3, f"Root mean squared error in units of the data. {FRAME_MEAN}."),
    "psnr": Definition(
        "PSNR", "higher", 2, f"Peak signal-to-noise ratio in dB. {FRAME_MEAN}. Infinite if one frame is perfect."
    ),
    "ssim": Definition(
        "SSIM",
        "higher",
        4,
        f"Structural similarity with a Gaussian window of 11 pixels (Wang et al. 2004). {FRAME_MEAN}.",
    ),
    "spectrum_ratio_high": Definition(
        "Fine-scale power",
        "one",
        3,
        "Power at wavelengths below 4 pixels relative to that of the observation. A forecast is blurred below 1.",
    ),
    "crps": Definition(
        "CRPS",
        "lower",
        5,
        "Continuous ranked probability score of the empirical distribution of the members, for values in [0, 1] "
        f"(Matheson and Winkler 1976). {PIXEL_MEAN}. The CRPS of one member is its mean absolute error.",
    ),
    "crps_fair": Definition(
        "CRPS fair",
        "lower",
        5,
        "CRPS that infinitely many members of the same quality would have (Ferro 2014), which compares ensembles of "
        f"different sizes. {PIXEL_MEAN}.",
    ),
    "csi_warning": Definition(
        "CSI of warnings",
        "higher",
        4,
        "CSI of the forecast that the threshold is reached wherever at least a share p of the members reach it. For "
        "each threshold, p was chosen on validation sequences, where it has the highest CSI. p of a single forecast is "
        f"1, which gives its CSI. {LEAD_MEAN}.",
    ),
    "spread": Definition(
        "Spread",
        "neither",
        5,
        f"Root of the members' variance, for values in [0, 1]. {PIXEL_MEAN} before the root. The spread of a reliable "
        "ensemble of M members is √(M / (M + 1)) times the skill.",
    ),
    "skill": Definition(
        "Skill",
        "lower",
        5,
        f"Root mean squared error of the ensemble mean, for values in [0, 1]. {PIXEL_MEAN} before the root.",
    ),
    "spread_skill_ratio": Definition(
        "Spread / skill",
        "one",
        3,
        "Spread over skill, corrected for the number of members (Fortin et al. 2014). A reliable ensemble has 1, an "
        "overconfident one less.",
    ),
    "rank_deviation": Definition(
        "Rank deviation",
        "lower",
        3,
        "Sum of the distances of the rank histogram from a flat one, the reliability index (Delle Monache et al. "
        "2006). A reliable ensemble has 0.",
    ),
    "rank_deviation_wet": Definition(
        "Rank deviation, wet",
        "lower",
        3,
        "The same without dry pixels, where the observation and all members are below the lowest threshold.",
    ),
    "twcrps": Definition(
        "Threshold-weighted CRPS",
        "lower",
        5,
        "CRPS of what the values exceed the threshold by, for values in [0, 1], which judges heavy rain alone "
        f"(Gneiting and Ranjan 2011). {PIXEL_MEAN}.",
    ),
    "brier": Definition(
        "Brier",
        "lower",
        5,
        f"Brier score, the mean squared error of the exceedance probability per threshold. {PIXEL_MEAN}.",
    ),
    "roc_area": Definition(
        "ROC area",
        "higher",
        4,
        "Area under the ROC curve: the chance that of two pixels, the one with the event has the higher probability. "
        "A forecast without skill has 0.5 (Mason and Graham 2002).",
    ),
    "warning_probability": Definition(
        "Probability of warnings",
        "neither",
        3,
        "The share p of the members that makes a warning, chosen on validation sequences.",
    ),
}
DIAGRAMS = {
    "ensemble_mean": (
        "Ensemble mean",
        "The pixelwise mean of the members, scored as one forecast. The row of the ensemble scores every member as one "
        "more sequence.",
    ),
    "pm_mean": (
        "Probability-matched mean",
        "The pattern of the ensemble mean with the distribution of values of the members (Ebert 2001).",
    ),
    "fss_per_threshold_scale": (
        "FSS",
        "Fractions skill score, the agreement of the share of pixels with the event in a window around each pixel "
        "(Roberts and Lean 2008). Sums over sequences and lead times are taken before the ratio. A forecast is useful "
        "above 0.5 plus half the frequency of the event.",
    ),
    "rank_histogram": (
        "Rank histogram",
        "Frequency of the rank of the observation among the sorted members, with ties shared evenly (Hamill 2001). It "
        "is flat if the ensemble is reliable and U-shaped if it is overconfident.",
    ),
    "reliability_observed_frequency": (
        "Reliability",
        "Frequency of the event given the share of the members that forecast it (Bröcker and Smith 2007). It equals "
        "that share if the ensemble is reliable.",
    ),
    "spectrum": (
        "Power spectrum",
        "Radially averaged power of the field, averaged over frames and members (Harris et al. 2001).",
    ),
}
