"""LocalResidual: the network that denoises a segment of the residual."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffcast.layers import (
    Downsample,
    LargeKernelAttention,
    ResidualBlock,
    SelfAttention,
    Upsample,
    add_shared,
    compute_dtype,
    full_precision,
    partial_convolution,
    recomputed,
    sinusoidal,
)

Denoiser = Callable[[Tensor, Tensor], Tensor]  # maps a noisy segment (B, L, C, H, W) and diffusion times (B,) to v
Modulation = Tensor  # (B, 2 width): scale and shift of one block


class LocalResidual(nn.Module):
    """A U-Net that predicts `v` of a noisy residual segment (DiffCast, section 3.3).

    The paper calls it GTUNet. Frames are folded into channels. GlobalMotion's context enters each level of the way down
    once. The previous segment's residual is concatenated with the noisy segment. Diffusion time and segment index
    modulate every block.
    """

    def __init__(
        self,
        channels: int = 1,
        segment_length: int = 5,  # frames of one segment
        dim: int = 64,  # width of the finest level
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),  # width after each level, in units of dim
        recompute: bool = False,  # recompute the levels' activations in the backward pass, to save memory
        auxiliary: int = 0,  # channels of noise that the finest layers of the way up read, see `diffcast.objectives`
    ):
        super().__init__()
        self.auxiliary = auxiliary
        widths = [dim, *(dim * m for m in dim_mults)]
        self.recompute = recompute
        levels = list(itertools.pairwise(widths))  # (width, width after it), finest first
        embedding = 8 * dim
        self.dim = dim
        self.stem = nn.Conv2d(2 * segment_length * channels, dim, 7, padding=3)
        self.embed_time = _embedding_mlp(dim)
        self.embed_segment = _embedding_mlp(dim)
        self.downs = nn.ModuleList(
            DownLevel(width, after, embedding, last=i == len(levels) - 1) for i, (width, after) in enumerate(levels)
        )
        self.middle_block1 = ResidualBlock(widths[-1], widths[-1], embedding)
        self.middle_attention = SelfAttention(widths[-1])
        self.middle_block2 = ResidualBlock(widths[-1], widths[-1], embedding)
        self.ups = nn.ModuleList(
            UpLevel(width, after, embedding, i == 0, auxiliary if i == 0 else 0)
            for i, (width, after) in reversed(list(enumerate(levels)))
        )
        self.head_block = ResidualBlock(2 * dim + auxiliary, dim, embedding)
        self.head = nn.Conv2d(dim, segment_length * channels, 1)

    def forward(
        self,
        noisy: Tensor,  # (B, L, C, H, W): residual segment at diffusion time `time`
        time: Tensor,  # (B,) integers
        condition: Tensor,  # (B, L, C, H, W): residual of the previous segment, zeros for the first
        context: list[Tensor],  # GlobalMotion's feature maps, finest first
        segment: Tensor,  # (B,) integers: index of the segment
        auxiliary: Tensor | None = None,  # (B M, N, H, W): noise of M particles, if the network has such channels
    ) -> Tensor:
        """Predict `v`, `(B, L, C, H, W)`, or `(B M, L, C, H, W)` with auxiliary noise of M particles."""
        return self.conditioned(condition, context, segment, auxiliary)(noisy, time)

    def conditioned(
        self,
        condition: Tensor,
        context: list[Tensor],
        segment: Tensor,
        auxiliary: Tensor | None = None,  # (B M, N, H, W): noise of the network's `auxiliary` channels
    ) -> Denoiser:
        """Return `forward` as a function of `noisy` and `time`.

        All that depends on neither is computed once. Members of a forecast share a context, so that `noisy`, `time` and
        `condition` may hold M consecutive samples for each sample of `context` and `segment`. So may `auxiliary` for
        each sample of `noisy`, and `v` then has M samples for each as well. The function becomes invalid when the
        weights or the precision (autocast) change.
        """
        stem = partial_convolution(self.stem, _to_channels(condition), first=True)
        downs = [level.given(maps) for level, maps in zip(self.downs, context, strict=True)]
        ups = [level.prepared(compute_dtype(condition)) for level in self.ups]
        modulate = self._modulations(segment)
        call = partial(recomputed, self.recompute)

        def denoise(noisy: Tensor, time: Tensor) -> Tensor:
            modulations = modulate(time)
            first = stem(_to_channels(noisy))
            x, skips = first, []
            for level in downs:
                x, *level_skips = call(level, x, next(modulations), next(modulations))
                skips += level_skips
            x = self.middle_block1(x, next(modulations))
            x = self.middle_block2(self.middle_attention(x), next(modulations))
            for level in ups[:-1]:
                x = call(level, x, skips.pop(), skips.pop(), next(modulations), next(modulations))
            finest = x, *skips, first, *modulations
            if auxiliary is not None:  # from here on, particles differ
                finest = (part.repeat_interleave(len(auxiliary) // len(part), dim=0) for part in finest)
            x, skip2, skip1, first, *modulations = finest
            x = call(ups[-1], x, _joined(skip1, auxiliary), _joined(skip2, auxiliary), *modulations[:2])
            x = self.head(self.head_block(_joined(torch.cat([x, first], dim=1), auxiliary), modulations[2]))
            return rearrange(x, "b (l c) h w -> b l c h w", c=noisy.shape[2]).to(noisy.dtype)

        return denoise

    def _modulations(self, segment: Tensor) -> Callable[[Tensor], Iterator[Modulation]]:
        """Return scales and shifts of all blocks as a function of diffusion times `(B M,)`.

        They come in the order of their use. One matrix product serves all blocks, and the segment's part of it is
        computed once.
        """
        layers = [block.modulation for block in self.modules() if isinstance(block, ResidualBlock)]
        widths = [layer.out_features for layer in layers]
        bias = torch.cat([layer.bias for layer in layers])
        of_time, of_segment = torch.cat([layer.weight for layer in layers]).chunk(2, dim=1)
        # float32 even under autocast. It costs nothing, and half precision cannot distinguish neighbouring times.
        with full_precision(segment):
            shared = F.linear(F.silu(self.embed_segment(sinusoidal(segment, self.dim))), of_segment, bias)

        def modulate(time: Tensor) -> Iterator[Modulation]:
            with full_precision(time):
                embedded = F.silu(self.embed_time(sinusoidal(time, self.dim)))
                return iter(add_shared(F.linear(embedded, of_time), shared).split(widths, dim=1))

        return modulate


class DownLevel(nn.Module):
    """One resolution on the way down; the last level keeps height and width."""

    def __init__(self, width: int, after: int, embedding: int, last: bool):
        super().__init__()
        self.block1 = ResidualBlock(2 * width, width, embedding)
        self.block2 = ResidualBlock(width, width, embedding)
        self.attention = LargeKernelAttention(width)
        self.resample = nn.Conv2d(width, after, 3, padding=1) if last else Downsample(width, after)

    def given(self, context: Tensor) -> Callable[[Tensor, Modulation, Modulation], tuple[Tensor, Tensor, Tensor]]:
        """Return a function from the input to the output and two skips, given the context."""
        block1 = self.block1.given(context)

        def descend(x: Tensor, modulation1: Modulation, modulation2: Modulation) -> tuple[Tensor, Tensor, Tensor]:
            first = block1(x, modulation1)
            second = self.attention(self.block2(first, modulation2))
            return self.resample(second), first, second

        return descend


class UpLevel(nn.Module):
    """One resolution on the way up; the last level keeps height and width."""

    def __init__(self, width: int, after: int, embedding: int, last: bool, auxiliary: int = 0):
        super().__init__()
        self.block1 = ResidualBlock(after + width + auxiliary, after, embedding)
        self.block2 = ResidualBlock(after + width + auxiliary, after, embedding)
        self.attention = LargeKernelAttention(after)
        self.resample = nn.Conv2d(after, width, 3, padding=1) if last else Upsample(after, width)

    def prepared(self, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor, Modulation, Modulation], Tensor]:
        """Return a function from the input and two skips to the output."""
        resample = self.resample.prepared(dtype) if isinstance(self.resample, Upsample) else self.resample

        def ascend(x: Tensor, skip1: Tensor, skip2: Tensor, modulation1: Modulation, modulation2: Modulation) -> Tensor:
            x = self.block1(torch.cat([x, skip1], dim=1), modulation1)
            x = self.block2(torch.cat([x, skip2], dim=1), modulation2)
            return resample(self.attention(x))

        return ascend


def _joined(x: Tensor, auxiliary: Tensor | None) -> Tensor:
    return x if auxiliary is None else torch.cat([x, auxiliary.to(x.dtype)], dim=1)


def _to_channels(frames: Tensor) -> Tensor:
    return rearrange(frames, "b l c h w -> b (l c) h w")


def _embedding_mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim))


_SIDES = ("downs", "ups")
_BLOCKS = [
    *((f"{side}.{{}}.{i}", f"{side}.{{}}.block{i + 1}") for side in _SIDES for i in (0, 1)),
    ("mid_block1", "middle_block1"),
    ("mid_block2", "middle_block2"),
    ("final_res_block", "head_block"),
]
_BLOCK_PARTS = [
    ("block{}.proj", "conv{}"),
    ("block{}.norm", "norm{}"),
    ("mlp.1", "modulation"),
    ("res_conv", "shortcut"),
]
_ATTENTIONS = [
    *((f"{side}.{{}}.2.fn", f"{side}.{{}}.attention") for side in _SIDES),
    ("mid_attn.fn", "middle_attention"),
]
_ATTENTION_PARTS = [
    ("norm.g", "norm.gain"),
    ("fn.proj_1", "project_in"),
    ("fn.proj_2", "project_out"),
    ("fn.spatial_gating_unit.conv0", "local"),
    ("fn.spatial_gating_unit.conv_spatial", "dilated"),
    ("fn.spatial_gating_unit.conv1", "pointwise"),
    ("fn.spatial_gating_unit.fc.0", "squeeze"),
    ("fn.spatial_gating_unit.fc.2", "excite"),
    ("fn.to_qkv", "qkv"),
    ("fn.to_out", "out"),
]
# Official parameter names -> ours.
OFFICIAL_NAMES = [
    ("init_conv", "stem"),
    ("time_mlp.1", "embed_time.0"),
    ("time_mlp.3", "embed_time.2"),
    ("frag_idx_mlp.1", "embed_segment.0"),
    ("frag_idx_mlp.3", "embed_segment.2"),
    *((f"{block}.{part}", f"{new}.{name}") for block, new in _BLOCKS for part, name in _BLOCK_PARTS),
    *((f"{attention}.{part}", f"{new}.{name}") for attention, new in _ATTENTIONS for part, name in _ATTENTION_PARTS),
    *((f"{side}.{{}}.3.1", f"{side}.{{}}.resample.conv") for side in _SIDES),
    *((f"{side}.{{}}.3", f"{side}.{{}}.resample") for side in _SIDES),
    ("final_conv", "head"),
]
