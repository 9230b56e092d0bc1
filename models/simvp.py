"""SimVP in the variant of the DiffCast paper.

Gao et al., CVPR 2022, arXiv 2206.05099: a frame-wise convolutional encoder and decoder around a translator of grouped
Inception blocks, which mixes time and channels. One pass maps `frames_in` frames to as many future frames. Longer
forecasts feed the output back.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.backbone import Backbone
from utils.errors import InputError

NORM_GROUPS = 2  # of the spatial blocks
BRANCH_GROUPS = 8  # of the translator's convolutions and norms
KERNELS = (3, 5, 7, 11)


class SimVP(Backbone):
    """SimVP forecaster for frames of even height and width.

    The forecast may leave [0, 1].
    """

    divisor = 2

    def __init__(
        self,
        frame_shape: tuple[int, int, int] = (1, 128, 128),
        frames_in: int = 5,
        frames_out: int = 20,
        spatial_width: int = 64,  # channels of encoder and decoder
        translator_width: int = 256,
        translator_depth: int = 6,  # number of encoding blocks, and of decoding blocks
    ):
        super().__init__(frame_shape, frames_in, frames_out)
        channels, height, width = self.frame_shape
        if height % 2 or width % 2:
            raise InputError(f"simvp needs frames of even height and width, not {height} x {width} pixels.")
        for name, value, divisor in (
            ("spatial_width", spatial_width, BRANCH_GROUPS),
            ("translator_width", translator_width, 2 * BRANCH_GROUPS),
        ):
            if value < divisor or value % divisor:
                raise InputError(f"simvp needs a {name} that is a multiple of {divisor}, not {value}.")
        if translator_depth < 2:
            raise InputError(f"simvp needs a translator_depth of at least 2, not {translator_depth}.")
        self.encoder = nn.ModuleList(
            [SpatialBlock(channels, spatial_width), SpatialBlock(spatial_width, spatial_width, "down")]
        )
        self.translator = Translator(frames_in * spatial_width, translator_width, translator_depth)
        self.decoder = nn.ModuleList(
            [SpatialBlock(spatial_width, spatial_width, "up"), SpatialBlock(spatial_width, spatial_width)]
        )
        self.readout = nn.Conv2d(spatial_width, channels, 1)

    def trend(self, observed: Tensor) -> Tensor:
        """See `Backbone.trend`."""
        chunks = [observed]
        for _ in range(math.ceil(self.frames_out / self.frames_in)):
            chunks.append(self._advance(chunks[-1]))
        return torch.cat(chunks[1:], dim=1)[:, : self.frames_out]

    def _advance(self, frames: Tensor) -> Tensor:
        """Predict as many frames as are given, `(B, frames_in, C, H, W)`."""
        b, t = frames.shape[:2]
        skip = self.encoder[0](rearrange(frames, "b t c h w -> (b t) c h w"))
        latent = rearrange(self.encoder[1](skip), "(b t) c h w -> b (t c) h w", t=t)
        latent = rearrange(self.translator(latent), "b (t c) h w -> (b t) c h w", t=t)
        out = self.readout(self.decoder[1](self.decoder[0](latent) + skip))
        return rearrange(out, "(b t) c h w -> b t c h w", b=b)


class SpatialBlock(nn.Module):
    """Convolution, group norm, SiLU.

    Height and width are halved (`down`), doubled (`up`) or kept.
    """

    def __init__(self, channels_in: int, channels_out: int, resample: str | None = None):
        super().__init__()
        self.resample = resample
        convolved = 4 * channels_out if resample == "up" else channels_out
        self.conv = nn.Conv2d(channels_in, convolved, 3, stride=2 if resample == "down" else 1, padding=1)
        self.norm = nn.GroupNorm(NORM_GROUPS, channels_out)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.resample == "up":
            x = F.pixel_shuffle(x, 2)
        return F.silu(self.norm(x))


class Translator(nn.Module):
    """A U-shaped stack of Inception blocks at one resolution, with concatenated skips."""

    def __init__(self, channels: int, width: int, depth: int):
        super().__init__()
        self.enc = nn.ModuleList(
            [Inception(channels, width, width)] + [Inception(width, width, width) for _ in range(depth - 1)]
        )
        self.dec = nn.ModuleList(
            [Inception(width, width, width)]
            + [Inception(2 * width, width, width) for _ in range(depth - 2)]
            + [Inception(2 * width, width, channels)]
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.enc:
            x = block(x)
            skips.append(x)
        x = self.dec[0](skips.pop())
        for block in self.dec[1:]:
            x = block(torch.cat([x, skips.pop()], dim=1))
        return x


class Inception(nn.Module):
    """Pointwise reduction to half the width, then a sum of four grouped convolutions."""

    def __init__(self, channels_in: int, width: int, channels_out: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels_in, width // 2, 1)
        self.branches = nn.ModuleList(Branch(width // 2, channels_out, kernel) for kernel in KERNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return sum(branch(x) for branch in self.branches)


class Branch(nn.Module):
    """Grouped convolution, group norm, leaky ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=BRANCH_GROUPS)
        self.norm = nn.GroupNorm(BRANCH_GROUPS, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


# Official parameter names -> ours.
SimVP.official_names = [
    ("enc.enc.{}.conv", "encoder.{}"),
    ("dec.dec.0.conv.conv.0", "decoder.0.conv"),  # followed there by the pixel shuffle
    ("dec.dec.{}.conv", "decoder.{}"),
    ("dec.readout", "readout"),
    *(
        (f"hid.{half}.{{}}.{theirs}", f"translator.{half}.{{}}.{ours}")
        for half in ("enc", "dec")
        for theirs, ours in (("conv1", "reduce"), ("layers", "branches"))
    ),
]
