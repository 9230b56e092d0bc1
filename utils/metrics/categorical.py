"""Categorical scores of threshold exceedance: CSI, POD, FAR, HSS, frequency bias, pooled CSI."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from utils.metrics.score import Score


class Contingency(NamedTuple):
    """Contingency tables as four int64 counts of equal shape; every ratio is float64, NaN for 0/0.

    Definitions: Wilks, Statistical Methods in the Atmospheric Sciences; CSI as in Schaefer 1990, HSS as in
    Heidke 1926, FAR is the false alarm ratio (not the rate).
    """

    hits: Tensor
    misses: Tensor
    false_alarms: Tensor
    correct_negatives: Tensor

    def sum(self, dim: int) -> "Contingency":
        """Add the tables along `dim`."""
        return Contingency(*(count.sum(dim) for count in self))

    def csi(self) -> Tensor:
        """Critical success index, 0 to 1 (best)."""
        return self.hits.double() / (self.hits + self.misses + self.false_alarms)

    def pod(self) -> Tensor:
        """Probability of detection, 0 to 1 (best)."""
        return self.hits.double() / (self.hits + self.misses)

    def far(self) -> Tensor:
        """False alarm ratio, 0 (best) to 1."""
        return self.false_alarms.double() / (self.hits + self.false_alarms)

    def hss(self) -> Tensor:
        """Heidke skill score, -1 to 1 (best); 0 is chance."""
        h, m, f, r = (count.double() for count in self)  # products of counts overflow int64
        return 2 * (h * r - m * f) / ((h + m) * (m + r) + (h + f) * (f + r))

    def bias(self) -> Tensor:
        """Frequency bias, forecast over observed events, 0 to infinity; 1 is best."""
        return (self.hits + self.false_alarms).double() / (self.hits + self.misses)


class CategoricalScores(Score):
    """Scores of the event "value >= threshold", per threshold and lead time.

    The members of an ensemble are pooled: each counts as one more sequence.

    `compute` reduces CSI, POD, FAR, HSS and bias in the two ways of the literature:

    - `csi`: mean over thresholds and lead times of the score of each cell (Yu et al. 2024, DiffCast);
    - `csi_total`: counts summed over lead times, then the mean over thresholds (Gao et al. 2022, Earthformer;
      theirs adds 1e-4 to the denominators, which shows only in nearly empty tables).

    In both, a cell where CSI, POD, FAR or HSS is undefined scores 0; `csi_empty_cells` counts these. Where
    nothing was observed the bias is NaN and left out of its means, as 0 would read "never forecast".
    Each comes with `_per_threshold`, `_total_per_threshold`, `_per_lead` and `_per_threshold_lead`.

    `csi_pool<p>` is the CSI of fields reduced by max pooling over blocks of p x p pixels, partial ones at the
    border included, with counts summed over lead times. It is NaN if any threshold is undefined, as in
    DiffCast's evaluation. A block with a missing pixel is left out.

    State: `counts` and, for each pool size, `counts_pool<p>`, int64 `(4, K, T)` in the order of `Contingency`.
    """

    def __init__(
        self,
        scale: float,  # value in units of the thresholds = scale * frame value
        thresholds: Sequence[float],  # K, ascending
        leads: int,  # T, forecast frames
        pools: Sequence[int] = (4, 16),  # block sizes of the pooled CSI, pixels
    ):
        if list(thresholds) != sorted(set(thresholds)):
            raise ValueError(f"thresholds must ascend, but are {tuple(thresholds)}.")
        self.scale = scale
        self.thresholds = tuple(thresholds)
        self.blocks = {"counts": 1} | {f"counts_pool{pool}": pool for pool in pools}
        shape = (4, len(self.thresholds), leads)
        super().__init__(leads, {name: torch.zeros(shape, dtype=torch.int64) for name in self.blocks})

    def accumulate(self, forecast: Tensor, target: Tensor) -> None:
        """Count hits, misses, false alarms and correct negatives."""
        forecast_class = self._classify(forecast)
        target_class = self._classify(target).masked_fill(torch.isnan(target), self._missing)
        for name, block in self.blocks.items():
            pairs = self._count_pairs(_max_pool(forecast_class, block), _max_pool(target_class, block))
            self._add(**{name: _contingency_counts(pairs)})

    def compute(self) -> dict:
        """Return the scores of both reductions, the pooled CSI and the counts per threshold and lead time."""
        table = Contingency(*self._sums["counts"])
        scores = {}
        for name in ("csi", "pod", "far", "hss"):
            scores |= _reductions(name, table, undefined=0.0)
        scores |= _reductions("bias", table, undefined=torch.nan)
        for name, block in self.blocks.items():
            if block > 1:
                scores |= _pooled_csi(f"csi_pool{block}", Contingency(*self._sums[name]))
        return scores | {"counts": {name: count.tolist() for name, count in table._asdict().items()}}

    @property
    def _missing(self) -> int:
        return len(self.thresholds) + 1  # above every class, so that it survives max pooling

    def _classify(self, frames: Tensor) -> Tensor:
        """Return the number of thresholds that each pixel reaches, uint8."""
        values = self.scale * frames
        classes = torch.zeros_like(values, dtype=torch.uint8)
        for threshold in self.thresholds:  # faster than torch.bucketize
            classes += (values >= threshold).view(torch.uint8)
        return classes

    def _count_pairs(self, forecast_class: Tensor, target_class: Tensor) -> Tensor:
        """Histogram `(T, K + 1, K + 1)` of forecast and target class; a missing target is left out."""
        size = self._missing + 1
        lead = torch.arange(self.leads, dtype=torch.int32, device=target_class.device)
        pair = (rearrange(lead, "t -> t 1 1 1") * size + forecast_class) * size + target_class[:, None]
        pairs = torch.bincount(pair.flatten(), minlength=self.leads * size**2)
        return pairs.view(self.leads, size, size)[:, :-1, :-1]


def _max_pool(classes: Tensor, block: int) -> Tensor:
    """Maximum over blocks of `block` x `block` pixels, partial ones at the right and bottom border included."""
    if block == 1:
        return classes
    height, width = classes.shape[-2:]
    classes = F.pad(classes, (0, -width % block, 0, -height % block))
    rows = reduce(classes, "... (h block) w -> ... h w", "max", block=block)
    return reduce(rows, "... h (w block) -> ... h w", "max", block=block)


def _contingency_counts(pairs: Tensor) -> Tensor:
    """Turn a histogram of class pairs `(T, K + 1, K + 1)` into contingency counts `(4, K, T)`."""
    reached = pairs.flip(1, 2).cumsum(1).cumsum(2).flip(1, 2)  # forecast class >= i and target class >= j
    hits = reached.diagonal(dim1=1, dim2=2)[:, 1:]
    forecast, observed, pixels = reached[:, 1:, 0], reached[:, 0, 1:], reached[:, :1, 0]
    counts = Contingency(hits, observed - hits, forecast - hits, pixels - observed - forecast + hits)
    return rearrange(list(counts), "count t k -> count k t")


def _reductions(name: str, table: Contingency, undefined: float) -> dict:
    """Reduce the score `name` of tables `(K, T)`: mean over lead times, and total."""

    def defined(ratio: Tensor) -> Tensor:
        return ratio.nan_to_num(nan=undefined, posinf=undefined)

    ratio = getattr(table, name)()
    cells = defined(ratio)
    total = defined(getattr(table.sum(dim=1), name)())
    return {
        name: cells.nanmean(dim=1).nanmean().item(),
        f"{name}_total": total.nanmean().item(),
        f"{name}_empty_cells": int((~ratio.isfinite()).sum()),
        f"{name}_per_threshold": cells.nanmean(dim=1).tolist(),
        f"{name}_total_per_threshold": total.tolist(),
        f"{name}_per_lead": cells.nanmean(dim=0).tolist(),
        f"{name}_per_threshold_lead": cells.tolist(),
    }


def _pooled_csi(name: str, table: Contingency) -> dict:
    per_threshold = table.sum(dim=1).csi()
    return {
        name: per_threshold.mean().item(),
        f"{name}_per_threshold": per_threshold.tolist(),
        f"{name}_per_lead": table.csi().mean(dim=0).tolist(),
    }
