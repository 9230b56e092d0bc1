"""The levels of Earthformer: attention in cuboids that span one axis.

Gao et al., "Earthformer: Exploring Space-Time Transformers for Earth System Forecasting", NeurIPS 2022
(arXiv 2207.05833), section 3. Tokens are channel-last, `(B, T, H, W, D)` with `D` features; global vectors are
`(B, G, D)`. An attention layer returns updates, which its level adds to the input.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# One sample's tokens as sequences along each axis, in the order in which a level attends along them:
# sequences, heads, position in the sequence.
SEQUENCES = {
    "time": "(h w) n t",
    "rows": "(t w) n h",
    "columns": "(t h) n w",
}


class EncoderLevel(nn.Module):
    """Attention along time, rows and columns, with global vectors."""

    def __init__(
        self,
        shape: tuple[int, int, int],  # T, H, W of the tokens
        dim: int,
        heads: int,
        dropout: float,
        last: bool = False,  # whether no later level reads the global vectors
    ):
        super().__init__()
        self.attentions = nn.ModuleList(
            GlobalAxialAttention(dim, heads, axis, length, dropout)
            for axis, length in zip(SEQUENCES, shape, strict=True)
        )
        self.feed_forwards = nn.ModuleList(FeedForward(dim, dropout) for _ in SEQUENCES)
        if last:
            self.attentions[-1].freeze_globals()

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens and global vectors of the shapes that came in."""
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            dx, dg = attention(x, g)
            x, g = feed_forward(x + dx), g + dg
        return x, g


class SelfLevel(nn.Module):
    """Attention along time, rows and columns, without global vectors."""

    def __init__(
        self,
        shape: tuple[int, int, int],  # T, H, W of the tokens
        reach: tuple[int, int, int],  # T, H, W of the encoder's tokens on the same grid
        dim: int,
        heads: int,
        dropout: float,
    ):
        super().__init__()
        self.attentions = nn.ModuleList(
            AxialAttention(dim, heads, axis, *lengths, dropout)
            for axis, *lengths in zip(SEQUENCES, shape, reach, strict=True)
        )
        self.feed_forwards = nn.ModuleList(FeedForward(dim, dropout) for _ in SEQUENCES)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape that came in."""
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            x = feed_forward(x + attention(x))
        return x


class CrossLevel(nn.Module):
    """Attention of the forecast to the observations, then a feed-forward layer."""

    def __init__(self, dim: int, heads: int, frames_in: int, frames_out: int, dropout: float):
        super().__init__()
        self.attention = CrossAttention(dim, heads, frames_in, frames_out, dropout)
        self.feed_forward = FeedForward(dim, dropout)

    def forward(self, z: Tensor, memory: Tensor) -> Tensor:
        """Return tokens `(B, frames_out, H, W, D)`, given the memory `(B, frames_in, H, W, D)`."""
        return self.feed_forward(z + self.attention(z, memory))


class FeedForward(nn.Module):
    """Pre-norm feed-forward layer, residual included."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = linear(dim, 4 * dim)
        self.contract = linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape that came in."""
        hidden = self.dropout(F.gelu(self.expand(self.norm(x))))
        return x + self.dropout(self.contract(hidden))


class AxialAttention(nn.Module):
    """Self-attention along one axis.

    Time is cut into consecutive pieces of at most `reach` frames, which do not see one another. A last piece that is
    too short is filled up with zeros. The zeros are not masked and take part in the softmax, as weights trained with
    the paper's code expect.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        axis: str,  # a key of SEQUENCES
        length: int,  # tokens along the axis
        reach: int,  # the longest sequence; only time may have more tokens
        dropout: float,
    ):
        super().__init__()
        self.heads = heads
        self.axis = axis
        self.piece = min(length, reach)
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = linear(dim, 3 * dim, bias=False)
        self.bias = RelativePositionBias(heads, self.piece, self.piece, reach)
        self.out = linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update of tokens `(B, T, H, W, D)`."""
        batch, frames = x.shape[:2]
        tokens = self.norm(x)
        if self.axis == "time":
            tokens = F.pad(tokens, (0, 0, 0, 0, 0, 0, 0, -frames % self.piece))
            tokens = rearrange(tokens, "b (p t) h w d -> (b p) t h w d", t=self.piece)
        q, k, v = to_sequences(self.to_qkv(tokens), self.axis, self.heads, parts=3)
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(), dropout_p=dropout)
        update = self.dropout(self.out(from_sequences(attended, self.axis, tokens.shape)))
        return rearrange(update, "(b p) t h w d -> b (p t) h w d", b=batch)[:, :frames]


class GlobalAxialAttention(nn.Module):
    """Self-attention along one axis, together with the global vectors.

    Tokens also see the global vectors, which in turn see all tokens.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        axis: str,  # a key of SEQUENCES
        length: int,  # tokens along the axis
        dropout: float,
    ):
        super().__init__()
        self.heads = heads
        self.axis = axis
        self.updates_globals = True
        self.norm = nn.LayerNorm(dim)
        self.global_norm = nn.LayerNorm(dim)
        self.to_qkv = linear(dim, 3 * dim, bias=False)
        self.to_global_q = linear(dim, dim, bias=False)
        self.global_to_kv = linear(dim, 2 * dim, bias=False)
        self.bias = RelativePositionBias(heads, length, length, length)
        self.out = linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.global_update = GlobalUpdate(dim, heads, dropout)

    def freeze_globals(self) -> None:
        """Stop updating the global vectors, because no later layer reads them.

        The weights of the update stay, because official checkpoints have them. They get no gradient, because
        distributed training would wait for it.
        """
        self.updates_globals = False
        self.global_update.requires_grad_(False)

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return the updates of tokens `(B, T, H, W, D)` and of global vectors `(B, G, D)`."""
        tokens, vectors = self.norm(x), self.global_norm(g)
        local = to_sequences(self.to_qkv(tokens), self.axis, self.heads, parts=3)
        (q,) = to_sequences(self.to_global_q(tokens), self.axis, self.heads)
        k, v = rearrange(self.global_to_kv(vectors), "b g (r n e) -> r b 1 n g e", r=2, n=self.heads)
        attended = joint_attention(local, (q, k, v), self.bias(), self.dropout)
        dx = self.dropout(self.out(from_sequences(attended, self.axis, tokens.shape)))
        dg = self.global_update(tokens, vectors) if self.updates_globals else torch.zeros_like(g)
        return dx, dg


class GlobalUpdate(nn.Module):
    """Attention of the global vectors to all tokens and to one another."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_q = linear(dim, dim, bias=False)
        self.tokens_to_k = linear(dim, dim, bias=False)
        self.tokens_to_v = linear(dim, dim, bias=False)
        self.to_qkv = linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)  # torch's initialisation, as in the paper's code
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, vectors: Tensor) -> Tensor:
        """Return the update `(B, G, D)`, given normalised tokens and vectors."""
        q = rearrange(self.to_q(vectors), "b g (n e) -> b n g e", n=self.heads)
        k = rearrange(self.tokens_to_k(tokens), "b t h w (n e) -> b n (t h w) e", n=self.heads)
        v = rearrange(self.tokens_to_v(tokens), "b t h w (n e) -> b n (t h w) e", n=self.heads)
        among_vectors = rearrange(self.to_qkv(vectors), "b g (r n e) -> r b n g e", r=3, n=self.heads)
        attended = joint_attention((q, k, v), among_vectors, 0.0, self.dropout)
        return self.dropout(self.out(rearrange(attended, "b n g e -> b g (n e)")))


class CrossAttention(nn.Module):
    """Attention of each pixel of the forecast to the same pixel of the memory."""

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
        """Return the update `(B, frames_out, H, W, D)`, given the memory `(B, frames_in, H, W, D)`."""
        (q,) = to_sequences(self.to_q(self.norm(z)), "time", self.heads)
        k, v = to_sequences(self.to_kv(memory), "time", self.heads, parts=2)
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(), dropout_p=dropout)
        return self.dropout(self.out(from_sequences(attended, "time", z.shape)))


class RelativePositionBias(nn.Module):
    """Learned bias of the attention scores, by head and distance.

    `reach` is the length of the longest sequence. The table has a row for each distance from key to query, from
    `1 - reach` to `reach - 1`. Shorter sequences use the rows in the middle.
    """

    def __init__(self, heads: int, queries: int, keys: int, reach: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(2 * reach - 1, heads))
        nn.init.normal_(self.table, std=0.02)
        index = torch.arange(queries)[:, None] - torch.arange(keys) + reach - 1
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        """Return the bias `(heads, queries, keys)`."""
        return rearrange(self.table[self.index], "q k n -> n q k")


def joint_attention(
    local: Sequence[Tensor],  # queries, keys, values
    context: Sequence[Tensor],  # queries, keys, values
    bias: Tensor | float,  # added to the local scores
    dropout: nn.Dropout,
) -> Tensor:
    """Attend to two groups of keys under one softmax, each with its own queries.

    `scaled_dot_product_attention` has one set of queries for all keys, so the scores are computed here.
    """
    (q, k, v), (context_q, context_k, context_v) = local, context
    scale = q.shape[-1] ** -0.5
    scores = torch.cat(((q * scale) @ k.mT + bias, (context_q * scale) @ context_k.mT), dim=-1)
    weights = dropout(scores.softmax(dim=-1))
    local_weights, context_weights = weights.split((k.shape[-2], context_k.shape[-2]), dim=-1)
    return local_weights @ v + context_weights @ context_v


def to_sequences(features: Tensor, axis: str, heads: int, parts: int = 1) -> Tensor:
    """Rearrange `(B, T, H, W, parts * D)` to `(parts, B, sequences, heads, length, D / heads)`."""
    return rearrange(features, f"b t h w (r n e) -> r b {SEQUENCES[axis]} e", r=parts, n=heads)


def from_sequences(values: Tensor, axis: str, shape: torch.Size) -> Tensor:
    """Rearrange `(B, sequences, heads, length, D / heads)` to tokens `(B, T, H, W, D)`."""
    _, t, h, w, _ = shape
    return rearrange(values, f"b {SEQUENCES[axis]} e -> b t h w (n e)", t=t, h=h, w=w)


def linear(dim_in: int, dim_out: int, bias: bool = True) -> nn.Linear:
    """Build a linear layer with weights of variance 1 / `dim_in` and zero biases."""
    layer = nn.Linear(dim_in, dim_out, bias=bias)
    nn.init.normal_(layer.weight, std=dim_in**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
