"""Fractions skill score: how far forecast and observed events agree within neighbourhoods of growing size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from utils.metrics.events import Events
from utils.metrics.score import Score, split_missing


class FractionsSkill(Score):
    """FSS of events `scale * value >= threshold` (Roberts and Lean 2008).

    With the fractions of events S in the window around each pixel, FSS = 1 - sum (S_x - S_y)^2 / sum (S_x^2 + S_y^2),
    the sums taken over pixels, sequences and, except for `_lead`, lead times. Pixels beyond the frame and missing
    ones count as no event. A window of even size reaches one pixel further up and left. 0 (no skill) to 1 (best),
    NaN where no event was forecast or observed.

    `fss_per_threshold_scale` is the mean over members of the FSS of each; `fss_probability_per_threshold_scale`,
    for M > 1, has the exceedance probability in place of the forecast's events (Schwartz et al. 2010).

    State, float64: sums over pixels of squared numbers of events in the window, `target` `(K, S, T)`; `forecast` and
    its `product` with the target, `(K, S, T, M)`; for M > 1 the same of the sum of the members,
    `probability` and `probability_product`, `(K, S, T)`.
    """

    def __init__(
        self,
        scale: float,  # value in units of the thresholds = scale * frame value
        thresholds: Sequence[float],  # K, ascending
        leads: int,  # T, forecast frames
        members: int = 1,  # M
        windows: Sequence[int] = (1, 2, 4, 8, 16, 32),  # S, sides of the square windows, pixels
    ):
        self.events = Events(scale, thresholds)
        self.members = members
        self.windows = tuple(windows)
        shape = (len(self.events.thresholds), len(self.windows), leads)
        shapes = {"target": shape, "forecast": (*shape, members), "product": (*shape, members)}
        if members > 1:
            shapes |= {"probability": shape, "probability_product": shape}
        super().__init__(leads, {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()})

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Sum squares and products of the numbers of events in windows."""
        target, _ = split_missing(target)
        masks = zip(
            self.events.masks(self.events.levels(forecast)),
            self.events.masks(self.events.levels(target)[:, None]),
            strict=True,
        )
        terms = [
            self._sums_of_squares(window, *tables)
            for tables in (tuple(_summed_area(mask, max(self.windows)) for mask in pair) for pair in masks)
            for window in self.windows
        ]  # of all thresholds and windows, in this order
        axes = {"k": len(self.events.thresholds), "s": len(self.windows)}
        return {
            name: rearrange([term[name] for term in terms], "(k s) b ... -> b k s ...", **axes) for name in self._sums
        }

    def _sums_of_squares(self, window: int, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Sums over pixels of one threshold and window, from padded summed-area tables `(B, M, T, C, H, W)`."""
        x, y = (_window_sums(table, window, max(self.windows)) for table in (forecast, target))
        sums = {
            "target": _pixel_sum(y * y)[:, 0],
            "forecast": rearrange(_pixel_sum(x * x), "b m t -> b t m"),
            "product": rearrange(_pixel_sum(x * y), "b m t -> b t m"),
        }
        if self.members > 1:
            total = x.sum(dim=1, keepdim=True, dtype=torch.float64)
            sums |= {"probability": _pixel_sum(total * total)[:, 0], "probability_product": _pixel_sum(total * y)[:, 0]}
        return sums

    def compute(self) -> dict:
        """Return the scores by threshold and window, and the windows as `fss_scales` in pixels."""
        target, forecast, product = (self._sums[name] for name in ("target", "forecast", "product"))
        members = {"": _skill(forecast.sum(2), target.sum(2)[..., None], product.sum(2))}
        members["_lead"] = _skill(forecast, target[..., None], product)
        scores = {"fss_scales": list(self.windows)}
        scores |= {f"fss_per_threshold_scale{name}": value.mean(dim=-1).tolist() for name, value in members.items()}
        if self.members > 1:
            forecast = self._sums["probability"].sum(2) / self.members**2
            product = self._sums["probability_product"].sum(2) / self.members
            scores["fss_probability_per_threshold_scale"] = _skill(forecast, target.sum(2), product).tolist()
        return scores


def _skill(forecast: Tensor, target: Tensor, product: Tensor) -> Tensor:
    return 2 * product / (forecast + target)  # 1 - sum (x - y)^2 / sum (x^2 + y^2), multiplied out


def _summed_area(mask: Tensor, largest: int) -> Tensor:
    """Summed-area table of `(..., H, W)`, extended on all sides so that the largest window never leaves it.

    float32 holds whole numbers to 2^24, more than a frame has pixels.
    """
    table = mask.cumsum(-1, dtype=torch.float32).cumsum(-2)
    before, after = largest // 2, (largest - 1) // 2
    table = F.pad(table.flatten(0, 2), (before + 1, 0, before + 1, 0))
    return F.pad(table, (0, after, 0, after), mode="replicate").unflatten(0, mask.shape[:3])


def _window_sums(table: Tensor, window: int, largest: int) -> Tensor:
    """Number of events in the window around each pixel."""
    first = largest // 2 - window // 2
    for dim in (-2, -1):
        size = table.shape[dim] - largest
        table = table.narrow(dim, first + window, size) - table.narrow(dim, first, size)
    return table


def _pixel_sum(values: Tensor) -> Tensor:
    """Sum `(B, M, T, C, H, W)` to `(B, M, T)`; float32 is exact enough along a row, not over a frame."""
    return values.sum(dim=-1).double().sum(dim=(-2, -1))
