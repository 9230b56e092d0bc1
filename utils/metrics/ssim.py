"""Structural similarity of frames."""

import torch
from torch import Tensor

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels


def ssim(forecast: Tensor, target: Tensor) -> Tensor:
    """Structural similarity `(...)` of frames `(..., H, W)` in [0, 1], float64; the shapes may broadcast.

    Wang et al. 2004, with its Gaussian window of 11 x 11 pixels (sigma 1.5), population variances, and the
    mean over all windows inside the frame. SSIM does not change with the unit, so the data range is 1. NaN for
    a frame with a missing pixel and for frames smaller than the window.
    """
    x, y = forecast.double(), target.double()
    height, width = target.shape[-2:]
    if min(height, width) < WINDOW:
        return x.new_full(torch.broadcast_shapes(x.shape, y.shape)[:-2], torch.nan)
    rows, columns = _gaussian_band(height, x.device), _gaussian_band(width, x.device).T

    def smooth(field: Tensor) -> Tensor:
        return rows @ field @ columns

    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = smooth(x), smooth(y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = smooth(x * y) - product
    variances = smooth(x**2 + y**2) - squares  # only their sum is needed
    similarity = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    return similarity.mean(dim=(-2, -1))


def _gaussian_band(size: int, device: torch.device) -> Tensor:
    """Matrix `(size - 10, size)` that filters a vector with the window, without padding."""
    start = torch.arange(size - WINDOW + 1, dtype=torch.float64, device=device)[:, None]
    offset = torch.arange(size, dtype=torch.float64, device=device) - start
    weight = torch.exp(-(((offset - WINDOW // 2) / SIGMA) ** 2) / 2)
    band = torch.where((offset >= 0) & (offset < WINDOW), weight, 0)
    return band / band.sum(dim=1, keepdim=True)
