"""The contract that every deterministic backbone fulfils."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from utils.official import Rules


class Backbone(nn.Module):
    """A deterministic forecaster of the trend, whose residual DiffCast generates.

    A subclass takes `frame_shape`, `frames_in`, `frames_out` and its own options as keyword arguments and
    implements `trend`. It overrides `forward` only if its loss is not the mean squared error of the trend.
    Frames are float32 `(B, T, C, H, W)` with values in [0, 1]. In `forward`, missing values are NaN. In `trend` and
    `forecast`, they are 0.
    """

    loss_terms: tuple[str, ...] = ("loss",)  # scalars of `forward` that are logged
    trained_on: object = None  # what a checkpoint says about its frames, see `describe_source`
    divisor: int | None = None  # `trend` takes frames of any size that this divides; None: of `frame_shape` alone
    official_names: Rules = ()  # see utils.official
    official_dropped: Sequence[str] = ()

    def __init__(
        self,
        frame_shape: tuple[int, int, int] = (1, 128, 128),  # C, H, W
        frames_in: int = 5,  # observed frames
        frames_out: int = 20,  # frames to forecast
    ):
        super().__init__()
        self.frame_shape = tuple(frame_shape)
        self.frames_in = frames_in
        self.frames_out = frames_out

    def trend(self, observed: Tensor) -> Tensor:
        """Return a differentiable forecast, which may leave [0, 1].

        `(B, frames_in, C, H, W)` gives `(B, frames_out, C, H, W)`.
        """
        raise TypeError(f"{type(self).__name__} is a backbone without a `trend` method; implement it.")

    def forward(self, observed: Tensor, future: Tensor, generator=None) -> dict[str, Tensor]:
        """Training pass.

        Returns `loss`, a scalar to minimise, `deterministic`, the same scalar as a part of DiffCast's loss, and
        `forecast`, the differentiable trend `(B, frames_out, C, H, W)`. All forecasters take a `generator`, but a
        backbone draws nothing from it.
        """
        trend = self.trend(without_gaps(observed))
        loss = squared_error(trend, future)
        return {"loss": loss, "deterministic": loss, "forecast": trend}

    @torch.no_grad()
    def forecast(self, observed: Tensor, members: int = 1, generator=None) -> Tensor:
        """Return a forecast `(B, 1, frames_out, C, H, W)` in [0, 1] without gradients.

        A deterministic forecast has one member, even if more `members` are asked for.
        """
        return self.trend(observed).clamp(0, 1)[:, None]


def without_gaps(frames: Tensor) -> Tensor:
    """Replace missing values, which are NaN, by 0."""
    return frames.nan_to_num(nan=0.0)


def squared_error(forecast: Tensor, target: Tensor, dim: tuple[int, ...] = (1, 2, 3, 4)) -> Tensor:
    """Mean squared error of each sequence along `dim`, averaged over the sequences.

    Missing values of the target, which are NaN, do not count. A mean without any value is 0. Every sequence has the
    same weight, so that loss and gradient of a step do not depend on its division into batches and processes.
    """
    valid = ~target.isnan()
    squares = torch.where(valid, forecast - target, 0).square()
    return (squares.sum(dim) / valid.sum(dim).clamp(min=1)).mean(0)
