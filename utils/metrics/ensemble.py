"""Scores of the ensemble as a distribution: CRPS, spread and skill."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.metrics.score import Score, check_members, pixel_sum, pixel_sum_of_squares, split_missing

PIXEL_SUMS = ("crps", "crps_fair", "variance", "squared_error")


class EnsembleScores(Score):
    """CRPS, spread and skill of an ensemble of M members, in [0, 1] units.

    - `crps` of the members' empirical distribution (Matheson and Winkler 1976); the MAE if M = 1.
    - `crps_fair` estimates the CRPS of infinitely many members, so that ensembles of different size can be
      compared (Ferro 2014).
    - `twcrps` is the threshold-weighted CRPS of each threshold (Gneiting and Ranjan 2011): the CRPS of what values
      exceed the threshold by. It judges heavy rain alone.
    - `spread` is the root of the mean variance, `skill` the RMSE of the ensemble mean, and
      `spread_skill_ratio` is sqrt((M + 1) / M) spread / skill: 1 for a reliable ensemble of any size, below 1
      when overconfident (Fortin et al. 2014).

    All are means over valid pixels and sequences, roots taken last, per lead time and over everything.
    For M = 1, `crps_fair`, `spread` and the ratio are NaN.

    State: sums over pixels `PIXEL_SUMS`, float64 `(T,)`, those of `twcrps`, float64 `(K, T)`, and the number of
    `pixels`, int64 `(T,)`.
    """

    def __init__(
        self,
        leads: int,  # T, forecast frames
        members: int = 1,  # M
        thresholds: Sequence[float] = (),  # K, in [0, 1] units
    ):
        self.thresholds = tuple(thresholds)
        sums = {name: torch.zeros(leads, dtype=torch.float64) for name in PIXEL_SUMS}
        sums["twcrps"] = torch.zeros(len(self.thresholds), leads, dtype=torch.float64)
        super().__init__(leads, sums | {"pixels": torch.zeros(leads, dtype=torch.int64)})
        self.members = members

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Sum over pixels. Raises `ValueError` if the number of members is not the one expected."""
        check_members(forecast, self.members)
        target, missing = split_missing(target)  # with members of 0 there, missing pixels add nothing below
        mean = forecast.mean(dim=1)
        error = pixel_sum((forecast - target[:, None]).abs_()).mean(dim=1)
        dispersion = torch.zeros_like(error)
        for pair in itertools.combinations(forecast.unbind(1), 2):  # faster than to sort, up to 100 members
            dispersion += pixel_sum(torch.sub(*pair).abs_())
        pairs = self.members * (self.members - 1)  # 0 for one member, and 0 / 0 is NaN as it should be
        pixels = torch.full(target.shape[:2], target[0, 0].numel(), device=target.device)
        return {
            "crps": error - dispersion / self.members**2,
            "crps_fair": error - dispersion / pairs,
            "variance": pixel_sum_of_squares(forecast - mean[:, None]).sum(dim=1) / (self.members - 1),
            "squared_error": pixel_sum_of_squares(mean - target),
            "twcrps": self._threshold_weighted(forecast, target),
            "pixels": pixels if missing is None else pixels - missing.sum(dim=(2, 3, 4)),
        }

    def _threshold_weighted(self, forecast: Tensor, target: Tensor) -> Tensor:
        """Sum the threshold-weighted CRPS over pixels, `(B, K, T)`."""
        m = self.members
        ordered = forecast.sort(dim=1).values  # once for all thresholds, as excesses keep the order
        rank = torch.arange(1 - m, m, 2, device=forecast.device, dtype=forecast.dtype) / m**2
        sums = target.new_zeros(len(target), len(self.thresholds), self.leads, dtype=torch.float64)
        for number, threshold in enumerate(self.thresholds):
            excess, observed = (ordered - threshold).clamp_(min=0), (target - threshold).clamp_(min=0)
            dispersion = torch.einsum("m, bm... -> b...", rank, excess)
            sums[:, number] = pixel_sum((excess - observed[:, None]).abs_().mean(dim=1) - dispersion)
        return sums

    def compute(self) -> dict:
        """Return each score over everything and, as `_per_lead`, its curve over lead times."""
        overall = self._scores({name: self._sums[name].sum() for name in (*PIXEL_SUMS, "pixels")})
        scores = {name: value.item() for name, value in overall.items()}
        by_lead = self._sums["twcrps"] / self._sums["pixels"]
        total = self._sums["twcrps"].sum(dim=1) / self._sums["pixels"].sum()
        scores |= {"twcrps": total.tolist(), "twcrps_per_threshold_lead": by_lead.tolist()}
        return scores | {f"{name}_per_lead": values.tolist() for name, values in self._scores(self._sums).items()}

    def _scores(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        mean = {name: sums[name] / sums["pixels"] for name in PIXEL_SUMS}
        spread, skill = mean["variance"].sqrt(), mean["squared_error"].sqrt()
        return {
            "crps": mean["crps"],
            "crps_fair": mean["crps_fair"],
            "spread": spread,
            "skill": skill,
            "spread_skill_ratio": ((self.members + 1) / self.members) ** 0.5 * spread / skill,
        }
