"""Errors of the field, frame by frame: MSE, MAE, RMSE, PSNR."""

import torch
from torch import Tensor

from utils.metrics.score import Score, pixel_sum, pixel_sum_of_squares, split_missing

FRAME_SCORES = ("mse", "mae", "rmse", "psnr")


class FrameErrors(Score):
    """Errors in units of the source, of every frame over its valid pixels, averaged over frames.

    The reduction is DiffCast's (Yu et al. 2024): each score is computed per frame, averaged over sequences and
    members, then over lead times. So RMSE is a mean of roots and PSNR a mean of decibels, which a single perfect
    frame makes infinite; `perfect_frames` counts these.

    State: sums of `FRAME_SCORES`, float64 `(T,)`, finite as PSNR leaves out perfect frames, and the numbers of
    frames behind them, int64 `(T,)`.
    """

    def __init__(
        self,
        scale: float,  # value in units of the source = scale * frame value
        leads: int,  # T, forecast frames
    ):
        sums = {name: torch.zeros(leads, dtype=torch.float64) for name in FRAME_SCORES}
        counts = ("frames", "perfect_frames")
        super().__init__(leads, sums | {name: torch.zeros(leads, dtype=torch.int64) for name in counts})
        self.scale = scale

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Sum the scores of every frame over the members."""
        target, missing = split_missing(target)
        difference = forecast - target[:, None]  # 0 - 0 where missing
        pixels = target[0, 0].numel() if missing is None else (~missing).sum(dim=(-3, -2, -1))[:, None]
        mse = self.scale**2 * pixel_sum_of_squares(difference) / pixels
        rmse = mse.sqrt()
        perfect = mse == 0
        frames = {
            "mse": mse,
            "mae": self.scale * pixel_sum(difference.abs_()) / pixels,
            "rmse": rmse,
            "psnr": (20 * torch.log10(self.scale / rmse)).masked_fill(perfect, 0),
        }  # (B, M, T) each, NaN for a frame that cannot be scored
        return {name: values.nansum(dim=1) for name, values in frames.items()} | {
            "frames": (~mse.isnan()).sum(dim=1),
            "perfect_frames": perfect.sum(dim=1),
        }

    def compute(self) -> dict:
        """Return each score (MSE in units squared, MAE, RMSE in units, PSNR in dB), also as `_per_lead`."""
        scores = {}
        for name in FRAME_SCORES:
            per_lead = self._sums[name] / self._sums["frames"]
            if name == "psnr":
                per_lead = per_lead.masked_fill(self._sums["perfect_frames"] > 0, torch.inf)
            scores |= {name: per_lead.mean().item(), f"{name}_per_lead": per_lead.tolist()}
        return scores | {"perfect_frames": int(self._sums["perfect_frames"].sum())}
