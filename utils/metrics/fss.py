"""Fractions skill score: agreement of events within neighbourhoods of growing size."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from utils.metrics.events import Events
from utils.metrics.score import Score, check_members, split_missing

BLOCK_VALUES = 2**18  # levels processed at once, to stay in the cache


class FractionsSkill(Score):
    """FSS of events `scale * value >= threshold` (Roberts and Lean 2008).

    With the fractions of events S in the window around each pixel, FSS = 1 - sum (S_x - S_y)^2 / sum (S_x^2 + S_y^2),
    the sums taken over pixels, sequences and, except for `_lead`, lead times. Pixels beyond the frame and missing
    ones count as no event. A window of even size reaches one pixel further up and left. 0 (no skill) to 1 (best),
    NaN where no event was forecast or observed.

    `fss_per_threshold_scale` is the mean over members of the FSS of each, without those that, like the target, have no
    event; `fss_probability_per_threshold_scale`, for M > 1, has the exceedance probability in place of the
    forecast's events (Schwartz et al. 2010).

    State, float64: sums over pixels of squared numbers of events in the window, `target` `(K, S, T)`; `forecast` and
    its `product` with the target, `(K, S, T, M)`; for M > 1 also of the sum of the members, `probability` `(K, S, T)`.
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
            shapes["probability"] = shape
        super().__init__(leads, {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()})

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Sum squares and products of numbers of events. Raises `ValueError` if `members` is not the forecast's."""
        check_members(forecast, self.members)
        target, _ = split_missing(target)
        fields = torch.cat([self.events.levels(forecast), self.events.levels(target)[:, None]], dim=1)
        frames = rearrange(fields, "b f t c h w -> (b t) f c h w")
        blocks = [self._block_terms(block) for block in frames.split(max(1, BLOCK_VALUES // frames[0].numel()))]
        sums = {name: torch.cat([block[name] for block in blocks]) for name in self._sums}
        return {name: rearrange(term, "(b t) k s ... -> b k s t ...", b=len(target)) for name, term in sums.items()}

    def _block_terms(self, fields: Tensor) -> dict[str, Tensor]:
        """Compute terms `(N, K, S, ...)` of levels `(N, M + 1, C, H, W)`.

        The last level is that of the target.
        """
        rows = [
            _row_sums(numbers)
            for events in self.events.masks(_surround(fields, max(self.windows)))
            for numbers in _numbers_of_events(events, fields.shape, self.windows)
        ]  # of all thresholds and windows, in this order
        terms = {name: torch.stack([row[name] for row in rows]) for name in self._sums}
        axes = {"k": len(self.events.thresholds), "s": len(self.windows)}
        return {
            name: rearrange(term.double().sum(dim=(-2, -1)), "(k s) n ... -> n k s ...", **axes)
            for name, term in terms.items()
        }

    def compute(self) -> dict:
        """Return the scores by threshold and window, and the windows as `fss_scales` in pixels."""
        target, forecast, product = (self._sums[name] for name in ("target", "forecast", "product"))
        members = {"": _skill(forecast.sum(2), target.sum(2)[..., None], product.sum(2))}
        members["_lead"] = _skill(forecast, target[..., None], product)
        scores = {"fss_scales": list(self.windows)}
        scores |= {f"fss_per_threshold_scale{name}": value.nanmean(dim=-1).tolist() for name, value in members.items()}
        if self.members > 1:
            forecast = self._sums["probability"].sum(2) / self.members**2
            product = product.sum(dim=(2, 3)) / self.members
            scores["fss_probability_per_threshold_scale"] = _skill(forecast, target.sum(2), product).tolist()
        return scores


def _skill(forecast: Tensor, target: Tensor, product: Tensor) -> Tensor:
    return 2 * product / (forecast + target)  # 1 - sum (x - y)^2 / sum (x^2 + y^2), multiplied out


def _surround(fields: Tensor, window: int) -> Tensor:
    """Surround fields `(..., H, W)` with zeros, which are no events, as far as the window reaches; contiguous."""
    return F.pad(fields, (window // 2, (window - 1) // 2) * 2).contiguous()


def _numbers_of_events(events: Tensor, shape: torch.Size, windows: Sequence[int]) -> Iterator[Tensor]:
    """Yield the number of events `shape` in the window around each pixel, for windows of each size.

    `events`, surrounded by zeros and contiguous, are taken as one long row, in which the pixel below is `W'` further.
    Windows across the end of a row are meaningless, but none belongs to a pixel of the frame.
    A window that is a multiple of the one before is put together from its numbers, any other from pixels.
    """
    strides, margin, below = events.stride(), max(windows) // 2, events.shape[-1]
    numbers = pixels = events.flatten()
    side = 1
    for window in windows:
        if window % side:
            numbers, side = pixels, 1
        numbers = numbers.to(_count_type(window))
        for step in (side, side * below):
            numbers = _add_shifted(numbers, window // side, step)
        side = window
        yield numbers.float().as_strided(shape, strides, (margin - window // 2) * (below + 1))


def _count_type(window: int) -> torch.dtype:
    """Smallest type that counts the pixels of a square window."""
    return torch.uint8 if window < 16 else torch.int16 if window < 182 else torch.int32


def _add_shifted(numbers: Tensor, count: int, step: int) -> Tensor:
    """Add each number and the `count - 1` that follow at distances of `step`."""
    if count == 1:
        return numbers
    half = _add_shifted(numbers, count // 2, step)
    total = _sum_of_two(half, half, count // 2 * step)
    return _sum_of_two(total, numbers, (count - 1) * step) if count % 2 else total


def _sum_of_two(first: Tensor, second: Tensor, shift: int) -> Tensor:
    size = len(second) - shift
    return first[:size] + second[shift:]


def _row_sums(numbers: Tensor) -> dict[str, Tensor]:
    """Sum the numbers of members and target over each row.

    Numbers `(N, M + 1, C, H, W)`, those of the target last, give sums `(N, ..., C, H)`.

    float32 is exact enough along a row, not over a frame.
    """
    members, target = numbers[:, :-1], numbers[:, -1:]
    squares = torch.linalg.vector_norm(numbers, dim=-1).square()
    sums = {"forecast": squares[:, :-1], "target": squares[:, -1], "product": (members * target).sum(dim=-1)}
    if members.shape[1] > 1:
        sums["probability"] = torch.linalg.vector_norm(members.sum(dim=1), dim=-1).square()
    return sums
