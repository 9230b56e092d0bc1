"""Scores of the ensemble as a distribution: CRPS, spread and skill."""

import torch
from torch import Tensor

from utils.metrics.score import Score, split_missing

PIXEL_SUMS = ("crps", "crps_fair", "variance", "squared_error")


class EnsembleScores(Score):
    """CRPS, spread and skill of an ensemble of M members, in [0, 1] units.

    - `crps` of the members' empirical distribution (Matheson and Winkler 1976); the MAE if M = 1.
    - `crps_fair` estimates the CRPS of infinitely many members, so that ensembles of different size can be
      compared (Ferro 2014).
    - `spread` is the root of the mean variance, `skill` the RMSE of the ensemble mean, and
      `spread_skill_ratio` is sqrt((M + 1) / M) spread / skill: 1 for a reliable ensemble of any size, below 1
      when overconfident (Fortin et al. 2014).

    All are means over valid pixels and sequences, roots taken last, per lead time and over everything.
    For M = 1, `crps_fair`, `spread` and the ratio are NaN.

    State: sums over pixels `PIXEL_SUMS`, float64 `(T,)`, and the number of `pixels`, int64 `(T,)`.
    """

    def __init__(
        self,
        leads: int,  # T, forecast frames
        members: int = 1,  # M
    ):
        sums = {name: torch.zeros(leads, dtype=torch.float64) for name in PIXEL_SUMS}
        super().__init__(leads, sums | {"pixels": torch.zeros(leads, dtype=torch.int64)})
        self.members = members

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Sum over pixels. Raises `ValueError` if the number of members is not the one expected."""
        if forecast.shape[1] != self.members:
            raise ValueError(f"the score was built for {self.members} members, but got {forecast.shape[1]}.")
        target, missing = split_missing(target)
        members = forecast.double()
        mean = members.mean(dim=1)
        error = (members - target[:, None]).abs().mean(dim=1)
        dispersion = _half_difference_sum(forecast)
        pairs = self.members * (self.members - 1)  # 0 for one member, and 0 / 0 is NaN as it should be
        maps = {
            "crps": error - dispersion / self.members**2,
            "crps_fair": error - dispersion / pairs,
            "variance": (members - mean[:, None]).square().sum(dim=1) / (self.members - 1),
            "squared_error": (mean - target).square(),
        }
        pixels = torch.full(target.shape[:2], target[0, 0].numel(), device=target.device)
        if missing is not None:
            maps = {name: values.masked_fill(missing, 0) for name, values in maps.items()}
            pixels = pixels - missing.sum(dim=(2, 3, 4))
        return {name: values.sum(dim=(2, 3, 4)) for name, values in maps.items()} | {"pixels": pixels}

    def compute(self) -> dict:
        """Return each score over everything and, as `_per_lead`, its curve over lead times."""
        overall = self._scores({name: sums.sum() for name, sums in self._sums.items()})
        scores = {name: value.item() for name, value in overall.items()}
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


def _half_difference_sum(forecast: Tensor) -> Tensor:
    """Half of sum_ij |x_i - x_j| over the members `(B, M, ...)`, in O(M log M).

    With the members sorted it is linear, sum_i (2i - M - 1) x_(i) (Zamo and Naveau 2018).
    """
    members = forecast.shape[1]
    ordered = forecast.sort(dim=1).values.double()
    weight = torch.arange(1 - members, members, 2, dtype=torch.float64, device=forecast.device)
    return torch.einsum("m,bm...->b...", weight, ordered)
