"""Errors of the field, frame by frame: MSE, MAE, RMSE, PSNR, SSIM."""

import torch
from torch import Tensor

from utils.metrics.score import Score
from utils.metrics.ssim import ssim

FRAME_SCORES = ("mse", "mae", "rmse", "psnr", "ssim")


class FrameErrors(Score):
    """Errors in units of the source, of every frame over its valid pixels, averaged over frames.

    The reduction is DiffCast's (Yu et al. 2024): each score is computed per frame, averaged over sequences and
    members, then over lead times. So RMSE is a mean of roots and PSNR a mean of decibels, which a single perfect
    frame makes infinite; `perfect_frames` counts these. SSIM leaves out frames with a missing pixel and is NaN
    for frames smaller than 11 pixels.

    State: sums of `FRAME_SCORES`, float64 `(T,)`, and the numbers of frames behind them, int64 `(T,)`.
    """

    def __init__(
        self,
        scale: float,  # value in units of the source = scale * frame value
        leads: int,  # T, forecast frames
    ):
        sums = {name: torch.zeros(leads, dtype=torch.float64) for name in FRAME_SCORES}
        counts = ("frames", "ssim_frames", "perfect_frames")
        super().__init__(leads, sums | {name: torch.zeros(leads, dtype=torch.int64) for name in counts})
        self.scale = scale

    def accumulate(self, forecast: Tensor, target: Tensor) -> None:
        """Add the scores of every frame."""
        target = target[:, None]
        pixels = (~torch.isnan(target)).sum(dim=(-3, -2, -1))
        difference = self.scale * (forecast.double() - target).nan_to_num(0)
        mse = difference.square().sum(dim=(-3, -2, -1)) / pixels
        rmse = mse.sqrt()
        frames = {
            "mse": mse,
            "mae": difference.abs().sum(dim=(-3, -2, -1)) / pixels,
            "rmse": rmse,
            "psnr": 20 * torch.log10(self.scale / rmse),
            "ssim": ssim(forecast, target).mean(dim=-1),
        }  # (B, M, T) each, NaN for a frame that cannot be scored
        self._add(**{name: values.nansum(dim=(0, 1)) for name, values in frames.items()})
        self._add(
            frames=(~mse.isnan()).sum(dim=(0, 1)),
            ssim_frames=(~frames["ssim"].isnan()).sum(dim=(0, 1)),
            perfect_frames=(mse == 0).sum(dim=(0, 1)),
        )

    def compute(self) -> dict:
        """Return each score (MSE in units squared, MAE, RMSE in units, PSNR in dB), also as `_per_lead`."""
        scores = {}
        for name in FRAME_SCORES:
            frames = self._sums["ssim_frames" if name == "ssim" else "frames"]
            per_lead = self._sums[name] / frames
            scores |= {name: per_lead.mean().item(), f"{name}_per_lead": per_lead.tolist()}
        return scores | {"perfect_frames": int(self._sums["perfect_frames"].sum())}
