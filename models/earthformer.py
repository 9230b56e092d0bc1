"""Earthformer: a hierarchical transformer of axial attention with global vectors.

Gao et al., "Earthformer: Exploring Space-Time Transformers for Earth System Forecasting", NeurIPS 2022
(arXiv 2207.05833). Inside, tensors are channel-last, `(B, T, H, W, D)` with `D` features.
"""

from collections.abc import Iterable
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from models.backbone import Backbone
from models.cuboid import CrossLevel, EncoderLevel, SelfLevel, linear
from utils.errors import InputError
from utils.official import Rules

Size = tuple[int, int]  # height, width


class Earthformer(Backbone):
    """Earthformer forecaster for frames of any size.

    The observations are encoded on two grids, and a learned query that attends to both is decoded. The defaults are
    the paper's for SEVIR, except for the first stem factor. It is 1 instead of 3, so that frames of 128x128 pixels
    reach the same 32x32 grid as the paper's of 384x384. The forecast may leave [0, 1].
    """

    def __init__(
        self,
        frame_shape: tuple[int, int, int] = (1, 128, 128),
        frames_in: int = 5,
        frames_out: int = 20,
        stem_dims: tuple[int, ...] = (16, 64, 128),  # features after each stem stage; the coarse grid has 2 * the last
        stem_factors: tuple[int, ...] = (1, 2, 2),  # divisor of height and width of each stem stage
        stem_convs: int = 2,  # convolutions in each stage of stem and head
        heads: int = 4,
        global_vectors: int = 8,
        dropout: float = 0.1,
    ):
        super().__init__(frame_shape, frames_in, frames_out)
        _check_options(stem_dims, stem_factors, heads)
        channels, *frame_size = self.frame_shape
        sizes = [tuple(frame_size)]
        for factor in (*stem_factors, 2):
            sizes.append(_shrink(sizes[-1], factor))
        *head_sizes, fine, coarse = sizes
        dims = (stem_dims[-1], 2 * stem_dims[-1])
        stem_ends = pairwise((channels, *stem_dims))
        head_ends = pairwise((stem_dims[-1], *reversed(stem_dims)))

        stem = [StemStage(*ends, stem_convs, f) for ends, f in zip(stem_ends, stem_factors, strict=True)]
        self.stem = nn.Sequential(*stem)
        self.encoder = Encoder(frames_in, (fine, coarse), dims, heads, global_vectors, dropout)
        self.decoder = Decoder(frames_in, frames_out, (fine, coarse), dims, heads, dropout)
        head = [HeadStage(*ends, stem_convs, size) for ends, size in zip(head_ends, reversed(head_sizes), strict=True)]
        self.head = nn.Sequential(*head)
        self.to_frames = linear(stem_dims[0], channels)

    def trend(self, observed: Tensor) -> Tensor:
        """See `Backbone.trend`; raises `InputError` for another number or size of frames."""
        given, expected = tuple(observed.shape[1:]), (self.frames_in, *self.frame_shape)
        if given != expected:
            raise InputError(
                f"earthformer was built for frames (T, C, H, W) of {expected}, not {given}: "
                "set frames_in and frame_shape to those of the data."
            )
        tokens = self.stem(rearrange(observed, "b t c h w -> b t h w c"))
        forecast = self.head(self.decoder(*self.encoder(tokens)))
        return rearrange(self.to_frames(forecast), "b t h w c -> b t c h w")


class Encoder(nn.Module):
    """Two levels of attention with global vectors, on a fine and a coarse grid."""

    def __init__(
        self,
        frames: int,
        grids: tuple[Size, Size],  # fine, coarse
        dims: tuple[int, int],
        heads: int,
        global_vectors: int,
        dropout: float,
    ):
        super().__init__()
        self.position = PositionEmbedding(frames, *grids[0], dims[0])
        self.global_vectors = nn.Parameter(torch.empty(global_vectors, dims[0]))
        nn.init.normal_(self.global_vectors, std=0.02)
        self.level0 = EncoderLevel((frames, *grids[0]), dims[0], heads, dropout)
        self.merge = PatchMerging(*dims, factor=2)
        self.project_globals = nn.Linear(*dims)  # torch's initialisation, as in the paper's code
        self.level1 = EncoderLevel((frames, *grids[1]), dims[1], heads, dropout, last=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the memories `(B, frames_in, H, W, D)` of both grids."""
        g = repeat(self.global_vectors, "g d -> b g d", b=len(x))
        fine, g = self.level0(x + self.position(), g)
        coarse, _ = self.level1(self.merge(fine), self.project_globals(g))
        return fine, coarse


class Decoder(nn.Module):
    """A learned query, the same for all inputs, that attends to the memories."""

    def __init__(
        self,
        frames_in: int,
        frames_out: int,
        grids: tuple[Size, Size],  # fine, coarse
        dims: tuple[int, int],
        heads: int,
        dropout: float,
    ):
        super().__init__()
        self.position = PositionEmbedding(frames_out, *grids[1], dims[1])
        self.to_query = linear(dims[1], dims[1])
        self.cross1 = CrossLevel(dims[1], heads, frames_in, frames_out, dropout)
        self.upsample = Upsample(dims[1], dims[0], grids[0])
        self.self0 = SelfLevel((frames_out, *grids[0]), (frames_in, *grids[0]), dims[0], heads, dropout)
        self.cross0 = CrossLevel(dims[0], heads, frames_in, frames_out, dropout)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return tokens `(B, frames_out, H, W, D)` of the forecast on the fine grid."""
        z = repeat(self.to_query(self.position()), "t h w d -> b t h w d", b=len(coarse))
        z = self.upsample(self.cross1(z, coarse))
        return self.cross0(self.self0(z), fine)


class PositionEmbedding(nn.Module):
    """Learned position of every token, the sum of a vector per axis."""

    def __init__(self, frames: int, height: int, width: int, dim: int):
        super().__init__()
        self.time = nn.Parameter(torch.empty(frames, dim))
        self.row = nn.Parameter(torch.empty(height, dim))
        self.column = nn.Parameter(torch.empty(width, dim))
        for table in self.parameters():
            nn.init.normal_(table, std=0.02)

    def forward(self) -> Tensor:
        """Return the embedding `(T, H, W, D)`."""
        return self.time[:, None, None] + self.row[:, None] + self.column


class StemStage(nn.Sequential):
    """Convolutions of every frame, then a reduction of its size by `factor`."""

    def __init__(self, dim_in: int, dim_out: int, convs: int, factor: int):
        super().__init__()
        self.convs = FrameConvs(dim_in, dim_out, convs)
        self.merge = PatchMerging(dim_out, dim_out, factor)


class HeadStage(nn.Sequential):
    """Enlargement of every frame to `size`, then convolutions."""

    def __init__(self, dim_in: int, dim_out: int, convs: int, size: Size):
        super().__init__()
        self.upsample = Upsample(dim_in, dim_in, size)
        self.convs = FrameConvs(dim_in, dim_out, convs)


class FrameConvs(nn.Module):
    """3x3 convolutions of every frame, each with group norm and leaky ReLU."""

    def __init__(self, dim_in: int, dim_out: int, convs: int):
        super().__init__()
        layers = []
        for dim in (dim_in, *[dim_out] * (convs - 1)):
            layers += [
                nn.Conv2d(dim, dim_out, 3, padding=1),
                nn.GroupNorm(max(1, dim_out // 4), dim_out),
                nn.LeakyReLU(0.1, inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, T, H, W, dim_in)` to `(B, T, H, W, dim_out)`."""
        frames = self.layers(rearrange(x, "b t h w d -> (b t) d h w"))
        return rearrange(frames, "(b t) d h w -> b t h w d", b=len(x))


class PatchMerging(nn.Module):
    """One token for every `factor x factor` patch, after padding with zeros at bottom and right."""

    def __init__(self, dim_in: int, dim_out: int, factor: int):
        super().__init__()
        self.factor = factor
        self.norm = nn.LayerNorm(factor**2 * dim_in)
        self.reduce = linear(factor**2 * dim_in, dim_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, T, H, W, dim_in)` to `(B, T, ceil(H / factor), ceil(W / factor), dim_out)`."""
        height, width = x.shape[2:4]
        x = F.pad(x, (0, 0, 0, -width % self.factor, 0, -height % self.factor))
        patches = rearrange(x, "b t (h i) (w j) d -> b t h w (i j d)", i=self.factor, j=self.factor)
        return self.reduce(self.norm(patches))


class Upsample(nn.Module):
    """Nearest-neighbour enlargement of every frame to `size`, then a convolution."""

    def __init__(self, dim_in: int, dim_out: int, size: Size):
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(dim_in, dim_out, 3, padding=1)
        nn.init.kaiming_normal_(self.conv.weight, a=0.1, mode="fan_out")
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, T, H, W, dim_in)` to `(B, T, *size, dim_out)`."""
        frames = F.interpolate(rearrange(x, "b t h w d -> (b t) d h w"), self.size, mode="nearest")
        return rearrange(self.conv(frames), "(b t) d h w -> b t h w d", b=len(x))


def _shrink(size: Size, factor: int) -> Size:
    height, width = size
    return -(-height // factor), -(-width // factor)


def _check_options(stem_dims: tuple[int, ...], stem_factors: tuple[int, ...], heads: int) -> None:
    if not stem_dims or len(stem_dims) != len(stem_factors):
        raise InputError(
            f"earthformer needs as many stem_dims as stem_factors, at least one, not {stem_dims} and {stem_factors}."
        )
    if any(dim % 4 for dim in stem_dims) or stem_dims[-1] % heads:
        raise InputError(
            f"earthformer needs stem_dims that are multiples of 4, the last also of heads={heads}, not {stem_dims}."
        )


def _nested(parts: Rules, leaves: Rules) -> Iterable[tuple[str, str]]:
    """Combine rules for parts with rules for their leaves."""
    for (theirs, ours), (their_leaf, our_leaf) in product(parts, leaves):
        yield f"{theirs}.{their_leaf}", f"{ours}.{our_leaf}"


# Official parameter names -> ours.
Earthformer.official_names = [
    ("init_global_vectors", "encoder.global_vectors"),
    ("initial_encoder.conv_block_list.{}", "stem.{}.convs.layers"),
    ("encoder.down_layer_global_proj.0", "encoder.project_globals"),
    ("z_proj", "decoder.to_query"),
    ("decoder.upsample_layers.0", "decoder.upsample"),
    ("final_decoder.upsample_list.{}", "head.{}.upsample"),
    ("final_decoder.conv_block_list.{}", "head.{}.convs.layers"),
    ("dec_final_proj", "to_frames"),
    *_nested(
        [("enc_pos_embed", "encoder.position"), ("dec_pos_embed", "decoder.position")],
        [("T_embed.weight", "time"), ("H_embed.weight", "row"), ("W_embed.weight", "column")],
    ),
    *_nested(
        [
            ("initial_encoder.patch_merge_list.{}", "stem.{}.merge"),
            ("encoder.down_layers.0", "encoder.merge"),
        ],
        [("norm", "norm"), ("reduction", "reduce")],
    ),
    *_nested(
        [
            ("encoder.blocks.{}.0.ffn_l.{}", "encoder.level{}.feed_forwards.{}"),
            ("decoder.self_blocks.0.0.ffn_l.{}", "decoder.self0.feed_forwards.{}"),
            ("decoder.cross_blocks.{}.0.ffn_l.0", "decoder.cross{}.feed_forward"),
        ],
        [("layer_norm", "norm"), ("ffn_1", "expand"), ("ffn_2", "contract")],
    ),
    *_nested(
        [
            ("encoder.blocks.{}.0.attn_l.{}", "encoder.level{}.attentions.{}"),
            ("decoder.self_blocks.0.0.attn_l.{}", "decoder.self0.attentions.{}"),
            ("decoder.cross_blocks.{}.0.attn_l.0", "decoder.cross{}.attention"),
        ],
        [
            ("norm", "norm"),
            ("qkv", "to_qkv"),
            ("q_proj", "to_q"),
            ("kv_proj", "to_kv"),
            ("proj", "out"),
            ("relative_position_bias_table", "bias.table"),
            ("global_vec_norm", "global_norm"),
            ("l2g_q_net", "to_global_q"),
            ("l2g_global_kv_net", "global_to_kv"),
            ("g2l_global_q_net", "global_update.to_q"),
            ("g2l_k_net", "global_update.tokens_to_k"),
            ("g2l_v_net", "global_update.tokens_to_v"),
            ("g2g_global_qkv_net", "global_update.to_qkv"),
            ("global_proj", "global_update.out"),
        ],
    ),
]
Earthformer.official_dropped = [r"^.*\.relative_position_index$"]  # follows from the lengths
