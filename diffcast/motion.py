"""GlobalMotion: what observation and trend say about the motion of the whole sequence."""

import itertools

import torch
from einops import rearrange
from torch import Tensor, nn

from diffcast.layers import ConvGRU, Downsample, ResidualBlock, recomputed

# Official parameter names -> ours.
OFFICIAL_NAMES = [
    ("init_conv", "stem"),
    ("downs.{}.0.block{}.proj", "levels.{}.block.conv{}"),
    ("downs.{}.0.block{}.norm", "levels.{}.block.norm{}"),
    ("downs.{}.1.conv_gates.0", "levels.{}.recurrence.gates"),
    ("downs.{}.1.conv_cans.0", "levels.{}.recurrence.candidate"),
    ("downs.{}.2.1", "levels.{}.down.conv"),
]


class GlobalMotion(nn.Module):
    """A convolutional recurrent encoder over observed and forecast frames (DiffCast, section 3.3).

    Frames are `(B, T, C, H, W)` in [-1, 1]. Level `i` sees 1 / 2^i of the resolution; its recurrent state is the
    context that LocalResidual receives at that level. The levels run one after the other, each over all frames, so
    that only the recurrences themselves are sequential.
    """

    def __init__(
        self,
        channels: int = 1,
        dim: int = 64,  # width of the finest level
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),  # width after each level, in units of dim
        recompute: bool = False,  # the levels' activations in the backward pass, rather than keep them
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
        """Contexts, finest first: the states after frame index `local_at` (local) and after the last (global)."""
        steps = frames.shape[1]
        x = self.stem(rearrange(frames, "b t c h w -> (t b) c h w"))
        local, last = [], []
        for level in self.levels:
            states, x = recomputed(self.recompute, level, x, steps)
            local.append(states[local_at])
            last.append(states[-1])
        return local, last


class MotionLevel(nn.Module):
    """One resolution: residual block, recurrence, reduction to the next level (`None` for the coarsest)."""

    def __init__(self, width: int, following: int | None):
        super().__init__()
        self.block = ResidualBlock(width, width)
        self.recurrence = ConvGRU(width)
        self.down = Downsample(width, following) if following else None

    def forward(self, x: Tensor, steps: int) -> tuple[list[Tensor], Tensor | None]:
        """T frames `(T B, C, H, W)` -> T states `(B, C, H, W)` and the next level's frames."""
        states = self.recurrence(self.block(x), steps)
        return states, self.down and self.down(torch.cat(states))
