"""Verification scores that stream: update with batches, sum the state over processes, compute once."""

from collections.abc import Sequence

from torch import Tensor

from utils.metrics.categorical import CategoricalScores
from utils.metrics.ensemble import EnsembleScores
from utils.metrics.errors import FrameErrors
from utils.metrics.score import Score, ScoreGroup

__all__ = ["CategoricalScores", "EnsembleScores", "FrameErrors", "Score", "ScoreGroup", "Scores"]


class Scores(ScoreGroup):
    """All scores of a forecast: categorical, errors of the field, ensemble.

    Scale and thresholds are those of the data source. `compute` returns one flat dict, described at
    `CategoricalScores`, `FrameErrors` and `EnsembleScores`; the curves over lead times are the lists called
    `<score>_per_lead`. With more than one member the categorical scores and errors pool the members, and the key
    `ensemble_mean` holds a dict of the same scores for the ensemble mean.
    """

    def __init__(
        self,
        scale: float,  # value in units of the thresholds = scale * frame value
        thresholds: Sequence[float],  # K, ascending
        leads: int,  # T, forecast frames
        members: int = 1,  # M
        pools: Sequence[int] = (4, 16),  # block sizes of the pooled CSI, pixels
    ):
        def field_scores() -> dict[str, Score]:
            return {
                "categorical": CategoricalScores(scale, thresholds, leads, pools),
                "errors": FrameErrors(scale, leads),
            }

        parts = field_scores() | {"ensemble": EnsembleScores(leads, members)}
        if members > 1:
            parts["ensemble_mean"] = _EnsembleMean(leads, field_scores())
        super().__init__(leads, parts)


class _EnsembleMean(ScoreGroup):
    """Scores of the mean of the members."""

    def accumulate(self, forecast: Tensor, target: Tensor) -> None:
        mean = forecast.double().mean(dim=1, keepdim=True).float()
        super().accumulate(mean, target)

    def compute(self) -> dict:
        return {"ensemble_mean": super().compute()}
