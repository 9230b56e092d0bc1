"""Blocks that GlobalMotion and LocalResidual share."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

NORM_GROUPS = 8


def sinusoidal(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of integer positions `(B,)` at `width / 2` geometric frequencies: `(B, width)`.

    The slowest frequency is exactly 1 / 10000 (the exponent runs to 1 inclusive).
    """
    half = width // 2
    exponent = torch.arange(half, device=positions.device) / (half - 1)
    angles = positions[:, None].float() * torch.exp(-math.log(10000) * exponent)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut; an embedding scales and shifts the first one's norm."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int | None = None,  # its width; None: no embedding
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, channels_out)
        self.modulation = nn.Linear(embedding, 2 * channels_out) if embedding else None
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.norm1(self.conv1(x))
        if self.modulation is not None:
            scale, shift = self.modulation(F.silu(embedding))[..., None, None].chunk(2, dim=1)
            h = h * (scale + 1) + shift
        h = self.norm2(self.conv2(F.silu(h)))
        return F.silu(h) + self.shortcut(x)


class Downsample(nn.Module):
    """Halves height and width by moving 2x2 blocks into channels."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = nn.Conv2d(4 * channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pixel_unshuffle(x, 2))


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class RMSNorm(nn.Module):
    """Scales the channel vector of every pixel to root mean square 1, times a learnt gain."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (self.gain * math.sqrt(x.shape[1]))


class LargeKernelAttention(nn.Module):
    """Gated attention with a decomposed 21x21 kernel and squeeze-and-excitation, pre-normalised, with shortcut.

    After the temporal attention unit of TAU (Tan et al., CVPR 2023, arXiv 2206.12126).
    """

    def __init__(self, channels: int):
        super().__init__()
        squeezed = channels // max(channels // 16, 4)
        self.norm = RMSNorm(channels)
        self.project_in = nn.Conv2d(channels, channels, 1)
        self.local = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.dilated = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.squeeze = nn.Linear(channels, squeezed, bias=False)
        self.excite = nn.Linear(squeezed, channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        u = F.gelu(self.project_in(normed))
        spatial = self.pointwise(self._dilate(self.local(u)))
        channel = torch.sigmoid(self.excite(F.relu(self.squeeze(u.mean(dim=(2, 3))))))
        return x + normed + self.project_out(channel[..., None, None] * spatial * u)

    def _dilate(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self.dilated(x)
        # On processors the bfloat16 weight gradient of this convolution is wrong at random, even infinite (oneDNN,
        # channels-last).
        with torch.autocast("cpu", enabled=False):
            return self.dilated(x.float())


class SelfAttention(nn.Module):
    """Softmax attention between all pixels, pre-normalised, with shortcut."""

    def __init__(self, channels: int, heads: int = 4, head_width: int = 32):
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(channels)
        self.qkv = nn.Conv2d(channels, 3 * heads * head_width, 1, bias=False)
        self.out = nn.Conv2d(heads * head_width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        qkv = rearrange(
            self.qkv(self.norm(x)), "b (three head c) h w -> three b head (h w) c", three=3, head=self.heads
        )
        attended = F.scaled_dot_product_attention(*qkv)
        return x + self.out(rearrange(attended, "b head (h w) c -> b (head c) h w", h=height))


class ConvGRU(nn.Module):
    """Convolutional gated recurrent unit (Ballas et al. 2016, arXiv 1511.06432), run over a whole sequence."""

    def __init__(self, channels: int):
        super().__init__()
        self.gates = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)  # of input and state: reset, update
        self.candidate = nn.Conv2d(2 * channels, channels, 3, padding=1)  # of input and reset state

    def forward(self, x: Tensor) -> Tensor:
        """States after every frame, from a zero start: `(B, T, C, H, W)` -> the same shape.

        What depends on the input alone is convolved for all frames at once; the loop holds the rest.
        """
        b, _, c = x.shape[:3]
        gate_x, gate_h = self.gates.weight.split(c, dim=1)
        candidate_x, candidate_h = self.candidate.weight.split(c, dim=1)
        from_input = F.conv2d(
            rearrange(x, "b t c h w -> (b t) c h w"),
            torch.cat([gate_x, candidate_x]),
            torch.cat([self.gates.bias, self.candidate.bias]),
            padding=1,
        )
        states = []
        h = None
        for gates, candidate in (
            frame.split([2 * c, c], dim=1) for frame in rearrange(from_input, "(b t) c h w -> t b c h w", b=b)
        ):
            if h is not None:
                gates = gates + F.conv2d(h, gate_h, padding=1)
            reset, update = gates.sigmoid().chunk(2, dim=1)
            if h is not None:
                candidate = candidate + F.conv2d(reset * h, candidate_h, padding=1)
            new = update * candidate.tanh()
            h = new if h is None else (1 - update) * h + new
            states.append(h)
        return torch.stack(states, dim=1)
