"""Blocks that GlobalMotion and LocalResidual share."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORM_GROUPS = 8


def sinusoidal(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of positions `(B,)` at geometric frequencies, `(B, width)`.

    Positions are integers. The slowest of `width / 2` frequencies is exactly 1 / 10000, as the exponent ends at 1.
    """
    half = width // 2
    exponent = torch.arange(half, device=positions.device) / (half - 1)
    angles = positions[:, None].float() * torch.exp(-math.log(10000) * exponent)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which convolutions of `x` compute, also under autocast."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def full_precision(x: Tensor) -> AbstractContextManager:
    """Switch autocast off for the device of `x`."""
    return computing_in(torch.float32, x)


def computing_in(dtype: torch.dtype, x: Tensor) -> AbstractContextManager:
    """Switch autocast to `dtype` for the device of `x`; float32 switches it off."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False) if dtype == torch.float32 else torch.autocast(kind, dtype)


def recomputed(recompute: bool, function: Callable, *arguments: Tensor):
    """Return `function(*arguments)`.

    With `recompute`, only the arguments are kept, and the function runs again in the backward pass.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *arguments, use_reentrant=False)
    return function(*arguments)


def add_shared(x: Tensor, shared: Tensor) -> Tensor:
    """Add `(B, ...)`, which M members of a sequence share, to `x` `(B M, ...)`."""
    if len(x) == len(shared):
        return x + shared
    return (x.unflatten(0, (len(shared), -1)) + shared[:, None]).flatten(0, 1)


def partial_convolution(conv: nn.Conv2d, shared: Tensor, first: bool = False) -> Callable[[Tensor], Tensor]:
    """Return a convolution as a function of the input channels that are not shared.

    `shared` `(B, C, H, W)` holds the last input channels, or the `first`, and is convolved once. The function takes the
    other channels of `(B M, ...)` samples, in which M consecutive samples have the same shared channels.
    """
    width = shared.shape[1]
    if first:
        weight_shared, weight = conv.weight.tensor_split([width], dim=1)
    else:
        weight, weight_shared = conv.weight.tensor_split([-width], dim=1)
    part = F.conv2d(shared, weight_shared, conv.bias, padding=conv.padding)
    weight = weight.to(compute_dtype(shared)).contiguous(memory_format=torch.channels_last)
    return lambda x: add_shared(F.conv2d(x, weight, padding=conv.padding), part)


class GroupNorm(nn.GroupNorm):
    """Group normalisation, on processors in float32 where half precision is slow.

    There, PyTorch takes seven times as long for channels-last bfloat16 images with narrow groups. With gradients, it
    also does for wider groups.
    """

    def forward(self, x: Tensor) -> Tensor:
        narrow = x.shape[1] // self.num_groups < (16 if torch.is_grad_enabled() else 8)
        if x.device.type != "cpu" or x.dtype == torch.float32 or not narrow:
            return super().forward(x)
        return super().forward(x.float()).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions with a shortcut.

    A modulation scales and shifts the output of the first norm.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int | None = None,  # width of the embedding that the modulation is computed from; None: none
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm1 = GroupNorm(NORM_GROUPS, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.norm2 = GroupNorm(NORM_GROUPS, channels_out)
        self.modulation = nn.Linear(embedding, 2 * channels_out) if embedding else None
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Map `(B, channels_in, H, W)` to `(B, channels_out, H, W)`.

        The modulation `(B, 2 channels_out)` holds scales, then shifts.
        """
        return self._after_first(self.conv1(x), modulation) + self.shortcut(x)

    def given(self, shared: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
        """Return `forward` as a function of the first input channels, given the others."""
        conv1, shortcut = partial_convolution(self.conv1, shared), partial_convolution(self.shortcut, shared)
        return lambda x, modulation: self._after_first(conv1(x), modulation) + shortcut(x)

    def _after_first(self, h: Tensor, modulation: Tensor | None) -> Tensor:
        h = self.norm1(h)
        if modulation is not None:
            scale, shift = modulation.to(h.dtype)[..., None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, scale + 1)
        return F.silu(self.norm2(self.conv2(F.silu(h))))


class Downsample(nn.Module):
    """2x2 blocks moved into channels, then a 1x1 convolution.

    Both together are one convolution of stride 2, which moves no data.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = nn.Conv2d(4 * channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = rearrange(self.conv.weight, "out (c i j) 1 1 -> out c i j", i=2, j=2)
        return F.conv2d(x, kernel, self.conv.bias, stride=2)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by 2, then a 3x3 convolution.

    Both together are one transposed convolution of stride 2. Its 4x4 kernel sums the taps that fall on copies of the
    same pixel, which leaves 4 of 9 multiplications.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.prepared(compute_dtype(x))(x)

    def prepared(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Return `forward` with a kernel that is computed once."""
        kernel = F.avg_pool2d(self.conv.weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
        kernel = kernel.transpose(0, 1).to(dtype).contiguous(memory_format=torch.channels_last)
        return lambda x: F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


class RMSNorm(nn.Module):
    """Channel vectors of root mean square 1 at every pixel, times a learnt gain."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # The gain must not promote half precision to float32, in which all later layers would run.
        return F.normalize(x, dim=1).to(x.dtype) * (self.gain * math.sqrt(x.shape[1])).to(x.dtype)


class LargeKernelAttention(nn.Module):
    """Gated attention with a decomposed 21x21 kernel and squeeze-and-excitation.

    It is pre-normalised and has a shortcut, after the temporal attention unit of TAU (Tan et al., CVPR 2023, arXiv
    2206.12126).
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
        """Dilated convolution; on processors, an ordinary convolution of interleaved images.

        There, the dilated convolution of PyTorch is about eight times slower. Its bfloat16 weight gradient is wrong at
        random, even infinite (oneDNN, channels-last).
        """
        if x.device.type != "cpu":
            return self.dilated(x)
        height, width = x.shape[2:]
        every = self.dilated.dilation[0]
        x = F.pad(x, (0, -width % every, 0, -height % every))
        x = rearrange(x, "b c (h i) (w j) -> (b i j) h w c", i=every, j=every)
        x = F.conv2d(
            rearrange(x, "n h w c -> n c h w"),
            self.dilated.weight,
            self.dilated.bias,
            padding=self.dilated.kernel_size[0] // 2,
            groups=self.dilated.groups,
        )
        x = rearrange(x, "(b i j) c h w -> b (h i) (w j) c", i=every, j=every)
        return rearrange(x[:, :height, :width], "b h w c -> b c h w")


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
        attended = rearrange(attended, "b head (h w) c -> b h w (head c)", h=height)
        return x + self.out(rearrange(attended, "b h w c -> b c h w"))


class ConvGRU(nn.Module):
    """Convolutional gated recurrent unit (Ballas et al. 2016, arXiv 1511.06432)."""

    def __init__(self, channels: int):
        super().__init__()
        self.gates = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)  # (input, state) -> (reset, update)
        self.candidate = nn.Conv2d(2 * channels, channels, 3, padding=1)  # (input, reset state) -> candidate

    def forward(self, x: Tensor, steps: int) -> list[Tensor]:
        """Return the states `(B, C, H, W)` after each of T `steps`, starting from zeros.

        `x` is `(T B, C, H, W)`. The part that depends on the input alone is convolved for all steps at once.
        """
        c, dtype = x.shape[1], compute_dtype(x)
        gate_x, gate_h = self.gates.weight.split(c, dim=1)
        candidate_x, candidate_h = self.candidate.weight.split(c, dim=1)
        from_input = F.conv2d(
            x,
            torch.cat([gate_x, candidate_x]),
            torch.cat([self.gates.bias, self.candidate.bias]),
            padding=1,
        )
        gate_h, candidate_h = (
            weight.to(dtype).contiguous(memory_format=torch.channels_last) for weight in (gate_h, candidate_h)
        )
        states = []
        h = None
        for gates, candidate in (step.split([2 * c, c], dim=1) for step in from_input.chunk(steps)):
            if h is not None:
                gates = gates + F.conv2d(h, gate_h, padding=1)
            reset, update = gates.sigmoid().chunk(2, dim=1)
            if h is not None:
                candidate = candidate + F.conv2d(reset * h, candidate_h, padding=1)
            new = update * candidate.tanh()
            h = new if h is None else (1 - update) * h + new
            states.append(h)
        return states
