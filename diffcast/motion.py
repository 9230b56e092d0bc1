"""GlobalMotion: the motion of observation and trend as context of the diffusion."""

import itertools

import torch
from einops import rearrange
from torch import Tensor, nn

from diffcast.layers import ConvGRU, Downsample, ResidualBlock, recomputed


class GlobalMotion(nn.Module):
    """A convolutional recurrent encoder over observed and forecast frames (DiffCast, section 3.3).

    Frames are `(B, T, C, H, W)` in [-1, 1]. Level `i` sees 1 / 2^i of the resolution. Its recurrent state is the
    context that LocalResidual receives at that level. Each level processes all frames before the next level begins, so
    that only the recurrences are sequential.
    """

    def __init__(
        self,
        channels: int = 1,
        dim: int = 64,  # width of the finest level
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),  # width after each level, in units of dim
        recompute: bool = False,  # recompute the levels' activations in the backward pass, to save memory
    ):
        super().__init__()
        widths = [dim, *(dim * m for m in dim_mults)]
        self.recompute = recompute
        self.stem = nn.Conv2d(channels, dim, 7, padding=3)
        last = len(dim_mults) - 1
        self.levels = nn.ModuleList(
            MotionLevel(width, following if i < last else None)
            for i, (width, following) in enumerate(itertools.pairwise(widths))
        )

    def forward(self, frames: Tensor, local_at: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the local and the global context, each a list of maps, finest first.

        They are the states after the frame with the index `local_at`, and after the last frame.
        """
        steps = frames.shape[1]
        x = self.stem(rearrange(frames, "b t c h w -> (t b) c h w"))
        local, last = [], []
        for level in self.levels:
            states, x = recomputed(self.recompute, level, x, steps)
            local.append(states[local_at])
            last.append(states[-1])
        return local, last


class MotionLevel(nn.Module):
    """One resolution: residual block, recurrence, reduction to the next level."""

    def __init__(self, width: int, following: int | None):  # None: the coarsest level, without a reduction
        super().__init__()
        self.block = ResidualBlock(width, width)
        self.recurrence = ConvGRU(width)
        self.down = Downsample(width, following) if following else None

    def forward(self, x: Tensor, steps: int) -> tuple[list[Tensor], Tensor | None]:
        """Map `(T B, C, H, W)` to T states `(B, C, H, W)` and the next level's frames."""
        states = self.recurrence(self.block(x), steps)
        return states, self.down and self.down(torch.cat(states))


# Official parameter names -> ours.
OFFICIAL_NAMES = [
    ("init_conv", "stem"),
    ("downs.{}.0.block{}.proj", "levels.{}.block.conv{}"),
    ("downs.{}.0.block{}.norm", "levels.{}.block.norm{}"),
    ("downs.{}.1.conv_gates.0", "levels.{}.recurrence.gates"),
    ("downs.{}.1.conv_cans.0", "levels.{}.recurrence.candidate"),
    ("downs.{}.2.1", "levels.{}.down.conv"),
]
