"""Verification scores that are updated with batches and summed over processes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from utils.metrics.categorical import CategoricalScores, reductions
from utils.metrics.ensemble import EnsembleScores
from utils.metrics.errors import FrameErrors
from utils.metrics.exceedance import ExceedanceScores
from utils.metrics.fss import FractionsSkill
from utils.metrics.matching import ensemble_mean, probability_matched_mean
from utils.metrics.perceptual import PerceptualDistance, load_lpips
from utils.metrics.ranks import RankHistogram
from utils.metrics.score import Score, ScoreGroup
from utils.metrics.spectrum import PowerSpectrum
from utils.metrics.ssim import StructuralSimilarity

__all__ = [
    "CategoricalScores",
    "EnsembleScores",
    "ExceedanceScores",
    "FractionsSkill",
    "FrameErrors",
    "PerceptualDistance",
    "PowerSpectrum",
    "RankHistogram",
    "Score",
    "ScoreGroup",
    "Scores",
    "StructuralSimilarity",
    "ensemble_mean",
    "load_lpips",
    "probability_matched_mean",
]

# Parts that only compare values, or convert frames themselves.
OF_FRAMES = ("categorical", "fractions", "exceedance", "ranks", "ensemble_mean", "pm_mean")


class Curve(Protocol):
    """How frames in [0, 1] and shares of the range of values correspond, where they are not the same.

    Both functions rise from 0 to 1 and take arrays of any shape.
    """

    def shares(self, frames: Tensor) -> Tensor:
        """Return the shares of the range that frames stand for."""

    def frames(self, shares: Tensor) -> Tensor:
        """Return the frames of shares of the range."""


class _CurvedGroup(ScoreGroup):
    """Scores of values, of frames on a scale that may be curved.

    Events and ranks are those of the frames, which reach thresholds exactly. All else is computed from values.
    """

    def __init__(self, leads: int, parts: Mapping[str, Score], curve: Curve | None):
        super().__init__(leads, parts)
        self.curve = curve

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        if self.curve is None:
            return super().terms(forecast, target)
        values = self.curve.shares(forecast).masked_fill(target.isnan()[:, None], 0), self.curve.shares(target)
        return {
            f"{key}/{name}": term
            for key, part in self.parts.items()
            for name, term in part.terms(*((forecast, target) if key in OF_FRAMES else values)).items()
        }


class Scores(_CurvedGroup):
    """All scores of a forecast, except LPIPS.

    Scale and thresholds are those of the data source. All scores are those of values in its units, or in shares of its
    range, also if the frames show these values on the scale of a `curve`. `compute` returns one flat dict, described at
    `CategoricalScores`, `FrameErrors`, `StructuralSimilarity`, `FractionsSkill`, `PowerSpectrum` and
    `EnsembleScores`. Curves over lead times are the lists called `<score>_per_lead`. With more than one member,
    `ExceedanceScores` and `RankHistogram` come in, the scores of single fields pool the members, and the keys
    `ensemble_mean` and `pm_mean` hold dicts of these scores for the ensemble mean and the probability-matched mean.

    A pixel that is NaN in a member counts in no score, so that a forecaster could gain by leaving out what is hard:
    `missing_forecast_pixels` counts such pixels that were observed. Scores are comparable only where it is 0.

    State in addition to that of the scores: `missing_forecast`, the number of these pixels, int64 `(T,)`.
    """

    def __init__(
        self,
        scale: float,  # value in units of the thresholds = scale * frame value
        thresholds: Sequence[float],  # K, ascending
        leads: int,  # T, forecast frames
        members: int = 1,  # M
        pools: Sequence[int] = (4, 16),  # block sizes of the pooled CSI, pixels
        curve: Curve | None = None,  # of frames that are not proportional to values
    ):
        def field_scores(members: int) -> dict[str, Score]:
            return {
                "categorical": CategoricalScores(scale, thresholds, leads, pools),
                "errors": FrameErrors(scale, leads),
                "similarity": StructuralSimilarity(leads),
                "fractions": FractionsSkill(scale, thresholds, leads, members),
                "spectrum": PowerSpectrum(leads),
            }

        shares = torch.tensor(thresholds, dtype=torch.float64) / scale
        shares = (shares if curve is None else curve.shares(shares)).tolist()
        parts = field_scores(members) | {"ensemble": EnsembleScores(leads, members, shares)}
        if members > 1:
            parts["exceedance"] = ExceedanceScores(scale, thresholds, leads, members)
            parts["ranks"] = RankHistogram(scale, thresholds[0], leads, members)
            for field in (ensemble_mean, probability_matched_mean):
                name = "pm_mean" if field is probability_matched_mean else "ensemble_mean"
                parts[name] = _FieldScores(leads, field_scores(1), curve, name, field)
        super().__init__(leads, parts, curve)
        self.missing_forecast = torch.zeros(leads, dtype=torch.int64)

    @classmethod
    def of(cls, source, leads: int, members: int = 1) -> "Scores":
        """Build the scores for frames of a source.

        It has the attributes `scale`, `steps` and `transform`, and the methods of a `Curve`.
        """
        return cls(source.scale, source.steps, leads, members, curve=source if source.transform else None)

    def compute(self) -> dict:
        """Return the scores of all parts in one dict."""
        return super().compute() | {"missing_forecast_pixels": int(self.missing_forecast.sum())}

    def warnings(self, needed: Sequence[int]) -> dict:
        """Return scores of the forecast that a threshold is reached wherever `needed` of its members reach it.

        `needed` holds a number of members, 1 to M, for each of the K thresholds. It must come from other data, such as
        `ExceedanceScores.best_warnings` of a validation split. `csi_warning` and its variants are reduced as `csi` is,
        and `warning_probability` is the share of the members. The warnings of one member are its events.
        """
        exceedance = self.parts.get("exceedance")
        table = exceedance.warnings(needed) if exceedance else self.parts["categorical"].table
        members = exceedance.members if exceedance else 1
        return reductions("csi", table, 0.0, "csi_warning") | {"warning_probability": [i / members for i in needed]}

    def state(self) -> dict[str, Tensor]:
        """Return the sums of all parts, and the number of pixels left out."""
        return super().state() | {"missing_forecast": self.missing_forecast}

    def _masked_terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        return super()._masked_terms(forecast, target) | {"missing_forecast": _missing_forecast(forecast, target)}

    def _replace(self, state: Mapping[str, Tensor]) -> None:
        super()._replace(state)
        self.missing_forecast = state["missing_forecast"]


def _missing_forecast(forecast: Tensor, target: Tensor) -> Tensor:
    """Count the pixels that are NaN in a member but valid in the target.

    The forecast is `(B, M, T, C, H, W)`, and the counts are `(B, T)`.
    """
    if not torch.isnan(forecast.sum()):  # several times faster than looking at every pixel
        return torch.zeros(target.shape[:2], dtype=torch.int64, device=target.device)
    return (forecast.isnan().any(dim=1) & ~target.isnan()).sum(dim=(2, 3, 4))


class _FieldScores(_CurvedGroup):
    """Scores of a field that represents the ensemble, under their own key."""

    def __init__(
        self,
        leads: int,  # T, forecast frames
        parts: Mapping[str, Score],
        curve: Curve | None,
        name: str,  # key of `compute`
        field: Callable[[Tensor, Tensor], Tensor],  # of members (B, M, T, C, H, W) and target, one (B, 1, T, C, H, W)
    ):
        super().__init__(leads, parts, curve)
        self.name = name
        self.field = field

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        if self.curve is None:
            return super().terms(self.field(forecast, target), target)
        return super().terms(self.curve.frames(self.field(self.curve.shares(forecast), target)), target)

    def compute(self) -> dict:
        return {self.name: super().compute()}
