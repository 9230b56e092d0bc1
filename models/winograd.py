"""3x3 convolution with a quarter of the multiplications, for weights that a recurrence uses at every step.

The scheme is F(4x4, 3x3) of Winograd (Lavin and Gray, CVPR 2016, arXiv 1509.09308): the result is cut into 4x4 tiles,
each of which reads a 6x6 patch; patches and kernels are mapped to 6x6 numbers whose products, summed over the channels,
map back to the tiles. A value is as exact as that of a direct convolution, to some 1e-6 in float32.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

TILE, KERNEL = 4, 3
PATCH = TILE + KERNEL - 1
PENDING = 1024  # rows of operands that wait for their share of the kernel's gradient
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity; these round half as much as the usual 0, +-1, +-2


class WinogradConv:
    """The convolution of an `nn.Conv2d` (3x3, stride 1, padding 1) on maps of one size, prepared for many calls.

    `split` turns maps into the operands of a call, so that maps which several convolutions read are split once. The
    object belongs to one forward pass: the calls share one sum for the weight's gradient (see `KernelGradient`).
    """

    def __init__(self, conv: nn.Conv2d, height: int, width: int):
        self.size = height, width
        self.bias = conv.bias
        outputs, kernel, patch = (matrix.to(conv.weight) for matrix in toom_cook())
        self.rows, self.columns = patches(patch, height), patches(patch, width)
        self.outputs = outputs
        weight = torch.kron(kernel, kernel) @ rearrange(conv.weight, "o i a b -> (a b) (i o)")
        self.gradient = KernelGradient(len(self.rows) * len(self.columns) // PATCH**2)
        self.kernel = Shared.apply(weight.unflatten(1, (conv.in_channels, -1)), self.gradient)  # (36, C_in, C_out)

    def split(self, maps: Tensor) -> Tensor:
        """Operand `(36, B * tiles, C)` from maps `(B, C, H, W)`."""
        tall = self.rows @ rearrange(maps, "b c h w -> b h (w c)")
        both = self.columns @ rearrange(tall, "b i (w c) -> b i w c", w=maps.shape[-1])
        return rearrange(both, "b (i y) (j x) c -> (i j) (b y x) c", i=PATCH, j=PATCH)

    def __call__(self, *operands: Tensor) -> Tensor:
        """Maps `(B, C_out, H, W)` from operands that stand for the concatenation of their maps' channels.

        Channels that are missing at the end count as zeros, and cost nothing.
        """
        products, self.kernel = Product.apply(torch.cat(operands, dim=-1), self.kernel, self.gradient)
        tall = self.outputs @ products.view(PATCH, -1)
        tiles = self.outputs @ tall.view(TILE, PATCH, -1)
        height, width = self.size
        y, x = len(self.rows) // PATCH, len(self.columns) // PATCH
        maps = rearrange(tiles, "i j (b y x c) -> b (y i) (x j) c", y=y, x=x, c=len(self.bias))
        return rearrange(maps[:, :height, :width] + self.bias, "b h w c -> b c h w")


def toom_cook() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices `A (4, 6)`, `G (6, 3)` and `D (6, 6)` in float64.

    `A @ ((G @ g) * (D @ d))` are the 4 correlations of a patch `d` with a kernel `g`.
    """
    points = torch.tensor(POINTS, dtype=torch.float64)[:, None]

    def evaluate(size: int) -> Tensor:
        infinity = F.one_hot(torch.tensor([size - 1]), size)
        return torch.cat([points ** torch.arange(size), infinity])

    return evaluate(TILE).mT, evaluate(KERNEL), torch.linalg.inv(evaluate(PATCH)).mT


def patches(matrix: Tensor, size: int) -> Tensor:
    """`(6 * tiles, size)`: `matrix` applied to every patch along an axis, which is 0 beyond its ends."""
    tiles = -(-size // TILE)
    banded = matrix.new_zeros(PATCH, tiles, tiles * TILE + 2)
    for tile in range(tiles):
        banded[:, tile, tile * TILE : tile * TILE + PATCH] = matrix
    return banded[:, :, 1 : size + 1].flatten(0, 1)


class Shared(torch.autograd.Function):
    """The kernel as the first product takes it; its gradient is that of all products."""

    @staticmethod
    def forward(ctx, kernel: Tensor, gradient: "KernelGradient") -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.gradient = gradient
        return kernel.view_as(kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx, reached: Tensor | None):
        return None if reached is None else ctx.gradient.total(), None


class Product(torch.autograd.Function):
    """`operands @ kernel`, batched, and the kernel for the next product.

    The kernel travels from product to product so that in a backward pass each knows whether a later one was reached,
    and `Shared` comes last. What travels back is a sign without memory; the shares are with `KernelGradient`.
    """

    @staticmethod
    def forward(ctx, operands: Tensor, kernel: Tensor, gradient: "KernelGradient") -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(operands, kernel)
        ctx.gradient = gradient
        return operands @ kernel[:, : operands.shape[-1]], kernel.view_as(kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, reached: Tensor | None):
        if grad is None:
            return None, reached, None
        operands, kernel = ctx.saved_tensors
        missing = kernel.shape[1] - operands.shape[-1]
        if reached is None:
            ctx.gradient.clear()  # what a pass that stopped before the kernel left
        ctx.gradient.add(F.pad(operands, (0, missing)) if missing else operands, grad)
        return grad @ kernel[:, : operands.shape[-1]].mT, grad.new_zeros(()).expand_as(kernel), None


class KernelGradient:
    """Sum of `operands.mT @ grad` over the products of a backward pass, taken many at a time.

    A product of a small batch has too few rows for the fastest code; it waits until `PENDING` have come together.
    """

    def __init__(self, tiles: int):
        self.tiles = tiles  # of one map
        self.clear()

    def clear(self) -> None:
        self.sum, self.pending = None, []

    def add(self, operands: Tensor, grad: Tensor) -> None:
        self.pending.append((operands, grad))
        if len(self.pending) * grad.shape[1] >= PENDING:
            self._settle()

    def total(self) -> Tensor:
        self._settle()
        total = self.sum
        self.clear()
        return total

    def _settle(self) -> None:
        if not self.pending:
            return
        if self.sum is None:
            operands, grad = self.pending[0]
            self.sum = grad.new_zeros(len(grad), operands.shape[-1], grad.shape[-1])
        for point, total in enumerate(self.sum):
            rows = (torch.cat([term[point] for term in terms]) for terms in zip(*self.pending, strict=True))
            operands, grad = (rearrange(row, "(n t) c -> n c t 1", t=self.tiles) for row in rows)
            # As the gradient of a 1x1 convolution's weight: oneDNN is faster than a BLAS without AVX-512
            share = conv2d_weight(grad, (operands.shape[1], grad.shape[1], 1, 1), operands)
            total += share[:, :, 0, 0]
        self.pending = []
