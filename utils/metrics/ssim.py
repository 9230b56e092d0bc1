"""Structural similarity of frames."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from utils.metrics.score import Score, split_missing

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels
BLOCK_VALUES = 2**19  # values of the fields filtered at once, to stay in the cache


class StructuralSimilarity(Score):
    """SSIM of every frame, averaged over sequences and members, then over lead times; 1 is best.

    Where pixels are missing, a frame's SSIM is the mean over the windows of valid pixels alone. A frame without such
    a window is left out. Frames smaller than 11 pixels have no SSIM, which is then NaN.

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
    mean over all windows inside the frame. SSIM does not change with the unit, so the data range is 1.

    Windows with a pixel that is missing (NaN in the target) do not count, whatever the forecast has there. NaN for a
    frame without any other window, and for frames smaller than the window.
    """
    if min(target.shape[-2:]) < WINDOW:
        return forecast.new_full(forecast.shape[:2], torch.nan, dtype=torch.float64)
    frames = max(1, BLOCK_VALUES // (4 * forecast[0].numel()))
    blocks = zip(forecast.split(frames), target.split(frames), strict=True)
    return torch.cat([_ssim(*block) for block in blocks])


def _ssim(forecast: Tensor, target: Tensor) -> Tensor:
    target, missing = split_missing(target)
    pixels = target[0].numel() if missing is None else (~missing).sum(dim=(1, 2)).clamp_(min=1)
    forecast, target = rearrange(forecast, "n m h w -> h w m n"), rearrange(target, "n h w -> h w 1 n")
    members = forecast.shape[2]
    sizes = (members, members, members, 1)
    # convolutions of float32 may be rounded to TF32 on a GPU
    dtype = torch.float32 if forecast.device.type == "cpu" else torch.float64
    fields = forecast.new_empty(*forecast.shape[:2], sum(sizes), forecast.shape[3], dtype=dtype)
    x, product, squares, y = fields.split(sizes, dim=2)
    # variances are differences of squares, which float32 holds best if these are small; one shift for both fields, as
    # then equal pixels keep equal errors, which cancel
    shift = target.sum(dim=(0, 1)) / pixels
    torch.sub(forecast, shift, out=x)
    torch.sub(target, shift, out=y)
    torch.mul(x, y, out=product)
    torch.mul(x, x, out=squares).addcmul_(y, y)

    mean_x, product, squares, mean_y = _smooth(fields.flatten(2)).unflatten(2, fields.shape[2:]).split(sizes, dim=2)
    covariance = product.addcmul_(mean_x, mean_y, value=-1)
    variances = squares.addcmul_(mean_x, mean_x, value=-1).addcmul_(mean_y, mean_y, value=-1)  # only their sum counts
    mean_x += shift
    mean_y += shift
    c1, c2 = 0.01**2, 0.03**2
    similarity = (mean_x * mean_y).mul_(2).add_(c1).mul_(covariance.mul_(2).add_(c2))
    similarity /= mean_x.square_().addcmul_(mean_y, mean_y).add_(c1).mul_(variances.add_(c2))
    windows = similarity[..., 0, 0].numel()
    if missing is not None:
        incomplete = _incomplete_windows(missing)
        similarity.masked_fill_(incomplete, 0)
        windows -= incomplete.sum(dim=(0, 1))
    return rearrange(similarity.sum(dim=(0, 1)) / windows, "m n -> n m").double()


def _incomplete_windows(missing: Tensor) -> Tensor:
    """Mask the windows of frames `(N, H, W)` with a missing pixel.

    Returns `(H - 10, W - 10, 1, N)`.
    """
    touched = rearrange(missing, "n h w -> h w 1 n")
    for _ in ("rows", "columns"):
        for shift in (1, 2, 4, WINDOW - 8):  # 2, 4, 8, then WINDOW pixels in a row
            touched = touched[:-shift] | touched[shift:]
        touched = touched.transpose(0, 1)
    return touched


def _smooth(fields: Tensor) -> Tensor:
    """Filter fields `(H, W, F)` with the window along both axes, without padding."""
    channels = fields[None].movedim(-1, 1)  # einops would lose the strides by which PyTorch knows channels-last memory
    weight = _gaussian(fields).expand(channels.shape[1], 1, 1, WINDOW)
    for kernel in (weight, weight.mT):
        channels = F.conv2d(channels, kernel, groups=len(weight))
    return rearrange(channels, "1 f h w -> h w f")


def _gaussian(like: Tensor) -> Tensor:
    offset = torch.arange(WINDOW, dtype=torch.float64, device=like.device) - WINDOW // 2
    weight = torch.exp(-((offset / SIGMA) ** 2) / 2)
    return (weight / weight.sum()).to(like)
