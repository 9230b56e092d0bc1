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

TILE, KERNEL = 4, 3
PATCH = TILE + KERNEL - 1
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity; these round half as much as the usual 0, +-1, +-2


class WinogradConv:
    """The convolution of an `nn.Conv2d` (3x3, stride 1, padding 1) on maps of one size, prepared for many calls.

    `split` turns maps into the operands of a call, so that maps which several convolutions read are split once. The
    object belongs to one forward pass: what the calls do to the weight's gradient is summed in place (see `Product`).
    """

    def __init__(self, conv: nn.Conv2d, height: int, width: int):
        self.size = height, width
        self.bias = conv.bias
        outputs, kernel, patch = (matrix.to(conv.weight) for matrix in toom_cook())
        self.rows, self.columns = patches(patch, height), patches(patch, width)
        self.outputs = outputs
        weight = torch.kron(kernel, kernel) @ rearrange(conv.weight, "o i a b -> (a b) (i o)")
        self.kernel = weight.unflatten(1, (conv.in_channels, -1))  # (36, C_in, C_out)

    def split(self, maps: Tensor) -> Tensor:
        """Operand `(36, B * tiles, C)` from maps `(B, C, H, W)`."""
        tall = self.rows @ rearrange(maps, "b c h w -> b h (w c)")
        both = self.columns @ rearrange(tall, "b i (w c) -> b i w c", w=maps.shape[-1])
        return rearrange(both, "b (i y) (j x) c -> (i j) (b y x) c", i=PATCH, j=PATCH)

    def __call__(self, *operands: Tensor) -> Tensor:
        """Maps `(B, C_out, H, W)` from operands that stand for the concatenation of their maps' channels."""
        products, self.kernel = Product.apply(torch.cat(operands, dim=-1), self.kernel)
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


class Product(torch.autograd.Function):
    """`operands @ kernel`, batched, and the kernel for the next product.

    The kernel's gradient travels back along the chain of products and each adds its share in place: the kernel is
    large, and a gradient of its own for every product would cost as much time in memory as it takes to compute.
    """

    @staticmethod
    def forward(ctx, operands: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(operands, kernel)
        return operands @ kernel, kernel.view_as(kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, later: Tensor | None):
        if grad is None:
            return None, later
        operands, kernel = ctx.saved_tensors
        total = operands.mT @ grad if later is None else later.baddbmm_(operands.mT, grad)
        return grad @ kernel.mT, total
