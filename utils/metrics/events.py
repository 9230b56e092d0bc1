"""The events that categorical scores count: "value >= threshold"."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

LONG_ROW = 128  # pixels


class Events:
    """The events `scale * value >= threshold` of frames in [0, 1], for ascending positive thresholds.

    The product is taken in float32. Whole thresholds of a byte are compared in uint8, after truncation, which
    leaves every event as it is and is several times faster.
    """

    def __init__(
        self,
        scale: float,  # value in units of the thresholds = scale * frame value
        thresholds: Sequence[float],  # K
    ):
        if list(thresholds) != sorted(set(thresholds)) or not all(threshold > 0 for threshold in thresholds):
            raise ValueError(f"thresholds must ascend from above 0, but are {tuple(thresholds)}.")
        self.scale = scale
        self._whole = scale <= 255 and all(
            float(threshold).is_integer() and threshold <= 255 for threshold in thresholds
        )
        self.thresholds = tuple(int(threshold) if self._whole else threshold for threshold in thresholds)

    def levels(self, frames: Tensor) -> Tensor:
        """Values that reach the same thresholds as the frames in [0, 1], without NaN, but compare faster."""
        values = self.scale * frames
        return values.to(torch.int16).to(torch.uint8) if self._whole else values  # straight to uint8 is slower

    def masks(self, levels: Tensor) -> Iterator[Tensor]:
        """Yield the events of each threshold, 0 or 1, uint8; a mask is overwritten by the next."""
        mask = torch.empty_like(levels, dtype=torch.uint8)
        for threshold in self.thresholds:
            yield torch.ge(levels, threshold, out=mask)

    def count(self, levels: Tensor) -> Tensor:
        """Number of pixels `(K, ...)` of levels `(..., C, H, W)` that reach each threshold, int64."""
        return torch.stack([_column_counts(mask) for mask in self.masks(levels)]).sum(dim=(-2, -1))


def count_pixels(mask: Tensor) -> Tensor:
    """Count the ones `(...)` of a mask `(..., C, H, W)` of uint8."""
    return _column_counts(mask).sum(dim=(-2, -1))


def _column_counts(mask: Tensor) -> Tensor:
    """Sums `(..., C, N)` of the columns of masks `(..., C, H, W)`, still in uint8, which counts to 255.

    Tall frames are cut and short rows joined, as adding long rows is faster.
    """
    height, width = mask.shape[-2:]
    joined = math.gcd(height, max(1, LONG_ROW // width))
    rows = mask.unflatten(-2, (-1, joined)).flatten(-2)
    parts = [part.sum(dim=-2, dtype=torch.uint8) for part in rows.split(255, dim=-2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
