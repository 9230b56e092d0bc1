"""Structural similarity of frames."""

import torch
from einops import rearrange
from torch import Tensor

from utils.metrics.score import Score

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels
STRIP = 24  # pixels filtered by one matrix product: more multiply zeros, fewer take more calls
BLOCK_VALUES = 2**18  # values of the fields filtered at once, to stay in the cache


class StructuralSimilarity(Score):
    """SSIM of every frame, averaged over sequences and members, then over lead times; 1 is best.

    Frames with a missing pixel are left out; frames smaller than 11 pixels have no SSIM, which is then NaN.

    State: the sum `ssim`, float64 `(T,)`, and the number of `frames`, int64 `(T,)`.
    """

    def __init__(
        self,
        leads: int,  # T, forecast frames
    ):
        sums = {"ssim": torch.zeros(leads, dtype=torch.float64), "frames": torch.zeros(leads, dtype=torch.int64)}
        super().__init__(leads, sums)

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Sum the similarity of every frame, the mean of its channels, over the members."""
        batch, members, leads, channels = forecast.shape[:4]
        similarity = ssim(rearrange(forecast, "b m t c h w -> (b t c) m h w"), target.flatten(0, 2))
        similarity = similarity.view(batch, leads, channels, members).mean(dim=2)
        return {"ssim": similarity.nansum(dim=-1), "frames": (~similarity.isnan()).sum(dim=-1)}

    def compute(self) -> dict:
        """Return `ssim` and its curve over lead times."""
        per_lead = self._sums["ssim"] / self._sums["frames"]
        return {"ssim": per_lead.mean().item(), "ssim_per_lead": per_lead.tolist()}


def ssim(forecast: Tensor, target: Tensor) -> Tensor:
    """Structural similarity `(N, M)` of frames `(N, M, H, W)` to frames `(N, H, W)` in [0, 1], float64.

    Wang et al. 2004, with its Gaussian window of 11 x 11 pixels (sigma 1.5), population variances, and the
    mean over all windows inside the frame. SSIM does not change with the unit, so the data range is 1. NaN for a
    frame with a missing pixel and for frames smaller than the window.
    """
    if min(target.shape[-2:]) < WINDOW:
        return forecast.new_full(forecast.shape[:2], torch.nan, dtype=torch.float64)
    frames = max(1, BLOCK_VALUES // (4 * forecast[0].numel()))
    blocks = zip(forecast.split(frames), target.split(frames), strict=True)
    return torch.cat([_ssim(*block) for block in blocks])


def _ssim(forecast: Tensor, target: Tensor) -> Tensor:
    forecast, target = rearrange(forecast, "n m h w -> h m n w"), rearrange(target, "n h w -> h 1 n w")
    members = forecast.shape[1]
    sizes = (members, members, members, 1)
    # in float32, rounding would make the variances depend on how the frames are batched
    fields = forecast.new_empty(len(forecast), sum(sizes), *forecast.shape[2:], dtype=torch.float64)
    x, product, squares, y = fields.split(sizes, dim=1)
    x.copy_(forecast)
    y.copy_(target)
    torch.mul(x, y, out=product)
    torch.mul(x, x, out=squares).addcmul_(y, y)

    mean_x, product, squares, mean_y = _smooth(fields).split(sizes, dim=1)
    product_of_means = mean_x * mean_y
    squares_of_means = mean_x.square_().addcmul_(mean_y, mean_y)
    covariance = product.sub_(product_of_means)
    variances = squares.sub_(squares_of_means)  # only their sum is needed
    c1, c2 = 0.01**2, 0.03**2
    similarity = product_of_means.mul_(2).add_(c1).mul_(covariance.mul_(2).add_(c2))
    similarity /= squares_of_means.add_(c1).mul_(variances.add_(c2))
    return rearrange(similarity.mean(dim=(0, 3)), "m n -> n m")


def _smooth(fields: Tensor) -> Tensor:
    """Filter the first and the last axis of `(H, ..., W)`, without padding.

    The filter is a band matrix; strip by strip, little is multiplied by its zeros.
    """
    weights = _gaussian(fields)
    height, width = len(fields) - WINDOW + 1, fields.shape[-1] - WINDOW + 1
    rows = fields.new_empty(height, *fields.shape[1:])
    both = fields.new_empty(*rows.shape[:-1], width)
    source, filtered = fields.flatten(1), rows.flatten(1)
    for start in range(0, height, STRIP):
        size = min(STRIP, height - start)
        weight = weights[:size, : size + WINDOW - 1]
        torch.mm(weight, source[start : start + size + WINDOW - 1], out=filtered[start : start + size])
    source, filtered = rows.flatten(0, -2), both.flatten(0, -2)
    for start in range(0, width, STRIP):
        size = min(STRIP, width - start)
        weight = weights[:size, : size + WINDOW - 1]
        torch.mm(source[:, start : start + size + WINDOW - 1], weight.T, out=filtered[:, start : start + size])
    return both


def _gaussian(like: Tensor) -> Tensor:
    """Matrix `(STRIP, STRIP + 10)` whose rows hold the window, shifted by one pixel from row to row."""
    start = torch.arange(STRIP, dtype=torch.float64, device=like.device)[:, None]
    offset = torch.arange(STRIP + WINDOW - 1, dtype=torch.float64, device=like.device) - start
    weight = torch.exp(-(((offset - WINDOW // 2) / SIGMA) ** 2) / 2)
    band = torch.where((offset >= 0) & (offset < WINDOW), weight, 0)
    return (band / band.sum(dim=1, keepdim=True)).to(like)
