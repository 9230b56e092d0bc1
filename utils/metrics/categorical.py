"""Categorical scores of threshold exceedance: CSI, POD, FAR, HSS, ETS, frequency bias, pooled CSI."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from utils.metrics.events import Events, count_pixels
from utils.metrics.score import Score, split_missing


class Contingency(NamedTuple):
    """Contingency tables as four int64 counts of equal shape; every ratio is float64, NaN for 0/0.

    Definitions: Wilks, Statistical Methods in the Atmospheric Sciences; CSI as in Schaefer 1990, HSS as in
    Heidke 1926, ETS as in Gilbert 1884, FAR is the false alarm ratio (not the rate).
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

    def ets(self) -> Tensor:
        """Equitable threat score (Gilbert skill score), -1/3 to 1 (best): CSI without the hits of chance."""
        h, m, f, r = (count.double() for count in self)
        chance = (h + m) * (h + f) / (h + m + f + r)
        return (h - chance) / (h + m + f - chance)

    def bias(self) -> Tensor:
        """Frequency bias, forecast over observed events, 0 to infinity; 1 is best."""
        return (self.hits + self.false_alarms).double() / (self.hits + self.misses)


class CategoricalScores(Score):
    """Scores of the event "value >= threshold", per threshold and lead time.

    The members of an ensemble are pooled: each counts as one more sequence.

    `compute` reduces CSI, POD, FAR, HSS, ETS and bias in the two ways of the literature:

    - `csi`: mean over thresholds and lead times of the score of each cell (Yu et al. 2024, DiffCast);
    - `csi_total`: counts summed over lead times, then the mean over thresholds (Gao et al. 2022, Earthformer;
      theirs adds 1e-4 to the denominators, which shows only in nearly empty tables).

    In both, a cell where CSI, POD, FAR, HSS or ETS is undefined scores 0; `csi_empty_cells` counts these. Where
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
        self.events = Events(scale, thresholds)
        self.blocks = {"counts": 1} | {f"counts_pool{pool}": pool for pool in pools}
        shape = (4, len(self.events.thresholds), leads)
        super().__init__(leads, {name: torch.zeros(shape, dtype=torch.int64) for name in self.blocks})

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Count hits, misses, false alarms and correct negatives."""
        target, missing = split_missing(target)
        levels = torch.cat([self.events.levels(forecast), self.events.levels(target)[:, None]], dim=1)
        missing = None if missing is None else missing.to(torch.uint8)
        pooled, terms = {1: (levels, missing)}, {}
        for name, block in self.blocks.items():
            source = max(size for size in pooled if block % size == 0)  # a maximum of maxima is the same and faster
            pooled[block] = tuple(_max_pool(fields, block // source) for fields in pooled[source])
            terms[name] = self._count(*pooled[block])
        return terms

    def _count(self, levels: Tensor, missing: Tensor | None) -> Tensor:
        """Contingency counts `(B, 4, K, T)`, in the order of `Contingency`.

        `levels` `(B, M + 1, T, C, H, W)` are those of the members and, last, of the target.
        """
        batch, members, leads = levels.shape[0], levels.shape[1] - 1, levels.shape[2]
        pixels = torch.full((batch, leads), levels[0, 0, 0].numel(), device=levels.device)
        if missing is not None:
            pixels = pixels - count_pixels(missing)
            levels = levels.masked_fill(missing[:, None].bool(), 0)
        both = torch.minimum(levels[:, :members], levels[:, members:])  # reaches what forecast and target reach
        reached = self.events.count(torch.cat([both, levels], dim=1))  # K, B, M + M + 1, T
        hits, forecast, observed = reached.split((members, members, 1), dim=2)
        hits, forecast, observed = hits.sum(dim=2), forecast.sum(dim=2), members * observed[:, :, 0]
        negatives = members * pixels - observed - forecast + hits
        counts = Contingency(hits, observed - hits, forecast - hits, negatives)
        return rearrange(list(counts), "count k b t -> b count k t")

    @property
    def table(self) -> Contingency:
        """The counts `(K, T)` so far."""
        return Contingency(*self._sums["counts"])

    def compute(self) -> dict:
        """Return the scores of both reductions, the pooled CSI and the counts per threshold and lead time."""
        table = self.table
        scores = {}
        for name in ("csi", "pod", "far", "hss", "ets"):
            scores |= reductions(name, table, undefined=0.0)
        scores |= reductions("bias", table, undefined=torch.nan)
        for name, block in self.blocks.items():
            if block > 1:
                scores |= _pooled_csi(f"csi_pool{block}", Contingency(*self._sums[name]))
        return scores | {"counts": {name: count.tolist() for name, count in table._asdict().items()}}


def _max_pool(fields: Tensor | None, block: int) -> Tensor | None:
    """Maximum over blocks of `block` x `block` pixels, partial ones at the right and bottom border included."""
    if block == 1 or fields is None:
        return fields
    height, width = fields.shape[-2:]
    if height % block or width % block:
        fields = F.pad(fields, (0, -width % block, 0, -height % block))
    for dim in (-2, -1):
        fields = reduce(torch.maximum, fields.unflatten(dim, (-1, block)).unbind(dim))  # faster than `amax`
    return fields


def reductions(score: str, table: Contingency, undefined: float, name: str = "") -> dict:
    """Reduce a score of tables `(K, T)`: mean over lead times, and total, under its own or another name."""
    name = name or score

    def defined(ratio: Tensor) -> Tensor:
        return ratio.nan_to_num(nan=undefined, posinf=undefined)

    ratio = getattr(table, score)()
    cells = defined(ratio)
    total = defined(getattr(table.sum(dim=1), score)())
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
