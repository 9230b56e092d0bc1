"""Rank histogram of an ensemble."""

import torch
from einops import rearrange
from torch import Tensor

from utils.metrics.score import Score, check_members, frame_histograms


class RankHistogram(Score):
    """Frequency of each rank of the observation among the M members.

    Talagrand et al. 1997; Hamill 2001. The histogram of a reliable ensemble is flat, and a U shape shows too little
    spread. A pixel whose observation equals `m` members counts as a share 1 / (m + 1) for each rank that it could take.
    This is the expectation of a random draw among these ranks. `rank_histogram_wet` leaves out dry pixels, where
    neither the observation nor any member reaches the threshold, because ties contain no information.
    `rank_deviation`, `rank_deviation_wet` and `rank_deviation_per_lead` sum the distances of the frequencies from
    1 / (M + 1), the reliability index (Delle Monache et al. 2006): 0 if flat, at most 2 M / (M + 1).

    State: `ranks`, int64 `(T, 2, M + 1, M + 1)`: pixels by dry or wet, members below, and members equal.
    """

    def __init__(
        self,
        scale: float,  # value in units of the threshold = scale * frame value
        threshold: float,  # where wet begins
        leads: int,  # T, forecast frames
        members: int,  # M
    ):
        super().__init__(leads, {"ranks": torch.zeros(leads, 2, members + 1, members + 1, dtype=torch.int64)})
        self.scale = scale
        self.threshold = threshold
        self.members = members

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Count pixels. Raises `ValueError` if the number of members is not the one expected."""
        check_members(forecast, self.members)
        below = torch.zeros_like(target, dtype=torch.int32)
        equal = torch.zeros_like(below)
        largest = target
        for member in forecast.unbind(1):
            below += member < target
            equal += member == target
            largest = torch.maximum(largest, member)
        wet = self.scale * largest >= self.threshold
        size = self.members + 1
        bins = (wet.int() * size + below) * size + equal
        counts = frame_histograms(bins, 2 * size**2, torch.isnan(target))
        return {"ranks": rearrange(counts, "b t (wet below equal) -> b t wet below equal", wet=2, below=size)}

    def compute(self) -> dict:
        """Return the frequencies of the ranks 0 to M, which sum to 1, or NaN without pixels."""
        ranks = torch.einsum("twbe,ber->twr", self._sums["ranks"].double(), self._shares())
        histograms = {
            "rank_histogram": ranks.sum(dim=(0, 1)),
            "rank_histogram_wet": ranks[:, 1].sum(dim=0),
            "rank_histogram_per_lead": ranks.sum(dim=1),
        }
        shares = {name: counts / counts.sum(-1, keepdim=True) for name, counts in histograms.items()}
        deviations = {
            name.replace("histogram", "deviation"): (share - 1 / (self.members + 1)).abs().sum(-1)
            for name, share in shares.items()
        }
        return {name: values.tolist() for name, values in (shares | deviations).items()}

    def _shares(self) -> Tensor:
        """Share of each rank in a pixel, `(M + 1, M + 1, M + 1)`.

        The axes are the number of members below the target, the number equal to it, and the rank.
        """
        number = torch.arange(self.members + 1, device=self._sums["ranks"].device)
        below, equal, rank = number[:, None, None], number[:, None], number
        return ((below <= rank) & (rank <= below + equal)) / (equal + 1.0).double()
