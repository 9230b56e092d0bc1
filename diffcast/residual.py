"""LocalResidual: the network that denoises one segment of the residual."""

import itertools

import torch
from einops import rearrange
from torch import Tensor, nn

from diffcast.layers import (
    Downsample,
    LargeKernelAttention,
    ResidualBlock,
    SelfAttention,
    Upsample,
    sinusoidal,
)


class LocalResidual(nn.Module):
    """A U-Net that predicts `v` of a noisy residual segment (DiffCast, section 3.3; the paper's GTUNet).

    Time is folded into channels. GlobalMotion's context enters each level of the way down once, the previous
    segment's residual enters beside the noisy one, and diffusion time and segment index modulate every block.
    """

    def __init__(
        self,
        channels: int = 1,
        segment_length: int = 5,  # frames of one segment
        dim: int = 64,  # width of the finest level
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),  # width after each level, in units of dim
    ):
        super().__init__()
        widths = [dim, *(dim * m for m in dim_mults)]
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
            UpLevel(width, after, embedding, last=i == 0) for i, (width, after) in reversed(list(enumerate(levels)))
        )
        self.head_block = ResidualBlock(2 * dim, dim, embedding)
        self.head = nn.Conv2d(dim, segment_length * channels, 1)

    def forward(
        self,
        noisy: Tensor,  # (B, L, C, H, W): residual segment at diffusion time `time`
        time: Tensor,  # (B,) integers
        condition: Tensor,  # (B, L, C, H, W): residual of the previous segment, zeros for the first
        context: list[Tensor],  # GlobalMotion's feature maps, finest first
        segment: Tensor,  # (B,) integers: index of the segment
    ) -> Tensor:
        """Predict `v`, `(B, L, C, H, W)`."""
        embedding = torch.cat(
            [
                self.embed_time(sinusoidal(time, self.dim)),
                self.embed_segment(sinusoidal(segment, self.dim)),
            ],
            dim=1,
        )
        stem = self.stem(rearrange([condition, noisy], "two b l c h w -> b (two l c) h w"))
        x, skips = stem, []
        for level, level_context in zip(self.downs, context, strict=True):
            x, level_skips = level(x, level_context, embedding)
            skips += level_skips
        x = self.middle_block1(x, embedding)
        x = self.middle_block2(self.middle_attention(x), embedding)
        for level in self.ups:
            x = level(x, skips.pop(), skips.pop(), embedding)
        x = self.head(self.head_block(torch.cat([x, stem], dim=1), embedding))
        return rearrange(x, "b (l c) h w -> b l c h w", c=noisy.shape[2])


class DownLevel(nn.Module):
    """One resolution on the way down; the last one keeps height and width."""

    def __init__(self, width: int, after: int, embedding: int, last: bool):
        super().__init__()
        self.block1 = ResidualBlock(2 * width, width, embedding)
        self.block2 = ResidualBlock(width, width, embedding)
        self.attention = LargeKernelAttention(width)
        self.resample = nn.Conv2d(width, after, 3, padding=1) if last else Downsample(width, after)

    def forward(self, x: Tensor, context: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        first = self.block1(torch.cat([x, context], dim=1), embedding)
        second = self.attention(self.block2(first, embedding))
        return self.resample(second), [first, second]


class UpLevel(nn.Module):
    """One resolution on the way up; the last one, which is the finest, keeps height and width."""

    def __init__(self, width: int, after: int, embedding: int, last: bool):
        super().__init__()
        self.block1 = ResidualBlock(after + width, after, embedding)
        self.block2 = ResidualBlock(after + width, after, embedding)
        self.attention = LargeKernelAttention(after)
        self.resample = nn.Conv2d(after, width, 3, padding=1) if last else Upsample(after, width)

    def forward(self, x: Tensor, skip1: Tensor, skip2: Tensor, embedding: Tensor) -> Tensor:
        x = self.block1(torch.cat([x, skip1], dim=1), embedding)
        x = self.block2(torch.cat([x, skip2], dim=1), embedding)
        return self.resample(self.attention(x))


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
    *((f"{place}.{part}", f"{new}.{name}") for place, new in _BLOCKS for part, name in _BLOCK_PARTS),
    *((f"{place}.{part}", f"{new}.{name}") for place, new in _ATTENTIONS for part, name in _ATTENTION_PARTS),
    *((f"{side}.{{}}.3.1", f"{side}.{{}}.resample.conv") for side in _SIDES),
    *((f"{side}.{{}}.3", f"{side}.{{}}.resample") for side in _SIDES),
    ("final_conv", "head"),
]
