"""Probabilities of exceedance: reliability, Brier score, ROC, and warnings made of them."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from utils.metrics.categorical import Contingency
from utils.metrics.events import Events
from utils.metrics.score import Score, check_members, frame_histograms, split_missing


class ExceedanceScores(Score):
    """Scores of the probability that a threshold is reached.

    The probability of `scale * value >= threshold` is the share i / M of the members that reach it.

    - Reliability: the observed frequency, NaN if there is none, and the number of pixels of each probability
      i / M, i = 0 to M (Broecker and Smith 2007).
    - `brier`: mean squared error of the probability, 0 (best) to 1 (Brier 1950); `brier_fair` estimates that of
      infinitely many members (Ferro 2014).
    - ROC: probability of detection and of false detection, F / (F + R), of the warnings "at least i members", for
      i = M + 1 to 0: from (0, 0) to (1, 1). The area, by trapezoids, is the probability that an event has the higher
      forecast probability than a non-event (Mason and Graham 2002); NaN if all pixels or none are events.

    State: `table`, int64 `(K, T, M + 1, 2)`: pixels by the number of members that reach the threshold and by
    whether the observation does.
    """

    def __init__(
        self,
        scale: float,  # value in units of the thresholds = scale * frame value
        thresholds: Sequence[float],  # K, ascending
        leads: int,  # T, forecast frames
        members: int,  # M
    ):
        self.events = Events(scale, thresholds)
        self.members = members
        shape = (len(self.events.thresholds), leads, members + 1, 2)
        super().__init__(leads, {"table": torch.zeros(shape, dtype=torch.int64)})

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Count pixels. Raises `ValueError` if the number of members is not the one expected."""
        check_members(forecast, self.members)
        target, missing = split_missing(target)
        masks = zip(
            self.events.masks(self.events.levels(forecast)),
            self.events.masks(self.events.levels(target)),
            strict=True,
        )
        tables = []
        for reached, observed in masks:
            bins = 2 * sum(member.to(torch.int32) for member in reached.unbind(1)) + observed
            tables.append(frame_histograms(bins, 2 * (self.members + 1), missing))
        return {"table": rearrange(tables, "k b t (m o) -> b k t m o", o=2)}

    def compute(self) -> dict:
        """Return the scores over all lead times, per threshold; Brier score and area also by lead time."""
        by_lead = self._sums["table"].double()  # K, T, M + 1, 2
        table = by_lead.sum(dim=1)
        pixels = table.sum(dim=-1)
        brier, bias = self._brier(table)
        pod, pofd = _roc(table)
        return {
            "reliability_probability": self._probability(table).tolist(),
            "reliability_observed_frequency": (table[..., 1] / pixels).tolist(),
            "reliability_count": pixels.long().tolist(),
            "brier": brier.tolist(),
            "brier_fair": (brier - bias).tolist(),
            "brier_per_threshold_lead": self._brier(by_lead)[0].tolist(),
            "roc_pod": pod.tolist(),
            "roc_pofd": pofd.tolist(),
            "roc_area": torch.trapezoid(pod, pofd).tolist(),
            "roc_area_per_threshold_lead": torch.trapezoid(*_roc(by_lead)).tolist(),
        }

    def warnings(self, needed: Sequence[int]) -> Contingency:
        """Tables `(K, T)` of the warnings "at least `needed` members reach the threshold".

        `needed`, 1 to M, has an entry for each of the K thresholds.
        """
        each = torch.arange(len(needed))
        return Contingency(*(counts[torch.tensor(needed) - 1, each] for counts in self._all_warnings()))

    def best_warnings(self) -> list[int]:
        """Return the number of members whose warnings have the highest CSI, for each threshold.

        The CSI is the mean over lead times, where an undefined one counts as 0. The smallest of equally good numbers
        is taken, which is 1 if nothing was observed.
        """
        csi = self._all_warnings().csi().nan_to_num(0).mean(dim=-1)
        return (csi.argmax(dim=0) + 1).tolist()

    def _all_warnings(self) -> Contingency:
        """Tables `(M, K, T)` of the warnings "at least i members", for i = 1 to M."""
        warned = rearrange(_warned(self._sums["table"]).flip(-2), "k t i o -> o i k t")
        false_alarms, hits = warned[:, 1:]
        correct_negatives, misses = warned[:, :1] - warned[:, 1:]
        return Contingency(hits, misses, false_alarms, correct_negatives)

    def _probability(self, table: Tensor) -> Tensor:
        return torch.arange(self.members + 1, dtype=table.dtype, device=table.device) / self.members

    def _brier(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Brier scores `(...)` of tables `(..., M + 1, 2)`.

        Also returns what of each is due to the number of members.
        """
        probability = self._probability(table)
        pixels = table.sum(dim=-1)
        error = torch.stack([probability, probability - 1], dim=-1).square()
        total = pixels.sum(dim=-1)
        variance = (pixels * probability * (1 - probability)).sum(dim=-1) / total
        return (table * error).sum(dim=(-2, -1)) / total, variance / (self.members - 1)


def _warned(table: Tensor) -> Tensor:
    """Pixels that at least M, M - 1, .. 0 members warn of, of tables `(..., M + 1, 2)`."""
    return table.flip(-2).cumsum(dim=-2)


def _roc(table: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of detection and of false detection `(..., M + 2)` of tables `(..., M + 1, 2)`."""
    warned = _warned(table)
    warned = torch.cat([torch.zeros_like(warned[..., :1, :]), warned], dim=-2)
    pofd, pod = (warned / warned[..., -1:, :]).unbind(-1)
    return pod, pofd
