"""Attention in space-time cuboids, the layers that Earthformer is made of.

Gao et al., "Earthformer: Exploring Space-Time Transformers for Earth System Forecasting", NeurIPS 2022
(arXiv 2207.05833), section 3. Tokens are channel-last, `(B, T, H, W, C)`; global vectors are `(B, G, C)`. An attention
layer returns its update without the residual, which the level around it adds.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# How the tokens of one sample are laid out as sequences along each axis: a batch of sequences, heads, a sequence.
SEQUENCES = {
    "time": "(h w) n t",
    "rows": "(t w) n h",
    "columns": "(t h) n w",
}


def linear(dim_in: int, dim_out: int, bias: bool = True) -> nn.Linear:
    """Build a linear map with weights of variance 1 / fan-in and biases of zero."""
    layer = nn.Linear(dim_in, dim_out, bias=bias)
    nn.init.normal_(layer.weight, std=dim_in**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class RelativePositionBias(nn.Module):
    """Learned bias of the attention scores, by head and by the distance from key to query.

    Returns `(heads, queries, keys)`. `reach` is the nominal length: the table has a row for every distance between
    `1 - reach` and `reach - 1`, of which shorter sequences use the middle.
    """

    def __init__(self, heads: int, queries: int, keys: int, reach: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(2 * reach - 1, heads))
        nn.init.normal_(self.table, std=0.02)
        index = torch.arange(queries)[:, None] - torch.arange(keys) + reach - 1
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        return rearrange(self.table[self.index], "q k n -> n q k")


class FeedForward(nn.Module):
    """Pre-norm feed-forward layer of the tokens, residual included."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = linear(dim, 4 * dim)
        self.contract = linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.gelu(self.expand(self.norm(x))))
        return x + self.dropout(self.contract(hidden))


class AxialAttention(nn.Module):
    """Self-attention along one axis of the tokens.

    Time is cut into consecutive pieces of at most `nominal` frames that do not see one another. A last piece that is
    too short is filled up with zeros that take part in its softmax: nothing is masked, as in the paper's code, whose
    weights this keeps valid.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        axis: str,  # a key of SEQUENCES
        length: int,  # tokens along the axis
        nominal: int,  # tokens along the axis in the encoder
        dropout: float,
    ):
        super().__init__()
        self.heads = heads
        self.sequences = SEQUENCES[axis]
        self.piece = min(length, nominal)
        self.cuts_time = axis == "time" and length > nominal
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = linear(dim, 3 * dim, bias=False)
        self.bias = RelativePositionBias(heads, self.piece, self.piece, nominal)
        self.out = linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x)
        if not self.cuts_time:
            return self.attend(tokens)
        batch, frames = tokens.shape[:2]
        tokens = F.pad(tokens, (0, 0, 0, 0, 0, 0, 0, -frames % self.piece))
        pieces = rearrange(tokens, "b (p t) h w c -> (b p) t h w c", t=self.piece)
        return rearrange(self.attend(pieces), "(b p) t h w c -> b (p t) h w c", b=batch)[:, :frames]

    def attend(self, tokens: Tensor) -> Tensor:
        """Attend within every sequence of normalised tokens `(B, T, H, W, C)`."""
        q, k, v = self.split(self.to_qkv(tokens), 3)
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(), dropout_p=dropout)
        return self.merge(attended, tokens.shape)

    def split(self, features: Tensor, parts: int) -> Tensor:
        """Lay features `(B, T, H, W, parts * C)` out as `(parts, B, sequences, heads, length, C / heads)`."""
        pattern = f"b t h w (r n e) -> r b {self.sequences} e"
        return rearrange(features, pattern, r=parts, n=self.heads)

    def merge(self, attended: Tensor, shape: torch.Size) -> Tensor:
        """Project the attended values of all heads and restore the axes of tokens of this shape."""
        _, t, h, w, _ = shape
        values = rearrange(attended, f"b {self.sequences} e -> b t h w (n e)", t=t, h=h, w=w)
        return self.dropout(self.out(values))


def joint_attention(
    local: tuple[Tensor, Tensor, Tensor],  # queries, keys, values
    context: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | float,  # of the local scores
    dropout: nn.Dropout,
) -> Tensor:
    """Attend to two groups of keys under one softmax, asking each group with its own queries.

    Fused attention asks all keys with the same query, so the scores are spelled out here.
    """
    (q, k, v), (context_q, context_k, context_v) = local, context
    scale = q.shape[-1] ** -0.5
    scores = torch.cat(((q * scale) @ k.mT + bias, (context_q * scale) @ context_k.mT), dim=-1)
    weights = dropout(scores.softmax(dim=-1))
    local_weights, context_weights = weights.split((k.shape[-2], context_k.shape[-2]), dim=-1)
    return local_weights @ v + context_weights @ context_v


class GlobalUpdate(nn.Module):
    """What the global vectors learn from all tokens of the sample and from one another.

    Takes normalised tokens `(B, T, H, W, C)` and normalised global vectors; returns `(B, G, C)`.
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_q = linear(dim, dim, bias=False)
        self.tokens_to_k = linear(dim, dim, bias=False)
        self.tokens_to_v = linear(dim, dim, bias=False)
        self.to_qkv = linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)  # the paper's code leaves it at torch's initialisation
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, vectors: Tensor) -> Tensor:
        q = rearrange(self.to_q(vectors), "b g (n e) -> b n g e", n=self.heads)
        k = rearrange(self.tokens_to_k(tokens), "b t h w (n e) -> b n (t h w) e", n=self.heads)
        v = rearrange(self.tokens_to_v(tokens), "b t h w (n e) -> b n (t h w) e", n=self.heads)
        own = rearrange(self.to_qkv(vectors), "b g (r n e) -> r b n g e", r=3, n=self.heads)
        learned = joint_attention((q, k, v), tuple(own), bias=0.0, dropout=self.dropout)
        return self.dropout(self.out(rearrange(learned, "b n g e -> b g (n e)")))


class GlobalAxialAttention(AxialAttention):
    """Self-attention along one axis, in which the tokens also see the global vectors and these see all tokens."""

    def __init__(self, dim: int, heads: int, axis: str, length: int, dropout: float):
        super().__init__(dim, heads, axis, length, length, dropout)
        self.global_norm = nn.LayerNorm(dim)
        self.to_global_q = linear(dim, dim, bias=False)
        self.global_to_kv = linear(dim, 2 * dim, bias=False)
        self.global_update = GlobalUpdate(dim, heads, dropout)

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        tokens, vectors = self.norm(x), self.global_norm(g)
        return self.attend(tokens, vectors), self.global_update(tokens, vectors)

    def attend(self, tokens: Tensor, vectors: Tensor) -> Tensor:
        """Attend within every sequence of normalised tokens and to the normalised global vectors."""
        local = tuple(self.split(self.to_qkv(tokens), 3))
        (q,) = self.split(self.to_global_q(tokens), 1)
        k, v = rearrange(self.global_to_kv(vectors), "b g (r n e) -> r b 1 n g e", r=2, n=self.heads)
        return self.merge(joint_attention(local, (q, k, v), self.bias(), self.dropout), tokens.shape)


class CrossAttention(nn.Module):
    """Every pixel of the forecast attends to the memory of the observations at the same pixel.

    Takes forecast tokens `(B, frames_out, H, W, C)` and memory `(B, frames_in, H, W, C)`; returns the shape of the former.
    """

    def __init__(self, dim: int, heads: int, frames_in: int, frames_out: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = linear(dim, dim, bias=False)
        self.to_kv = linear(dim, 2 * dim, bias=False)
        self.bias = RelativePositionBias(heads, frames_out, frames_in, frames_in + frames_out)
        self.out = linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, memory: Tensor) -> Tensor:
        height, width = z.shape[2:4]
        q = rearrange(self.to_q(self.norm(z)), "b t h w (n e) -> b (h w) n t e", n=self.heads)
        k, v = rearrange(self.to_kv(memory), "b t h w (r n e) -> r b (h w) n t e", r=2, n=self.heads)
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(), dropout_p=dropout)
        values = rearrange(attended, "b (h w) n t e -> b t h w (n e)", h=height, w=width)
        return self.dropout(self.out(values))
