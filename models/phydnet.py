"""PhyDNet in the variant of the DiffCast paper.

Le Guen and Thome, CVPR 2020, arXiv 2003.01460. Two recurrent branches share an encoder and a decoder. The dynamics of
the first are a learned partial differential equation. The second is a ConvLSTM for what the equation cannot express.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from models.backbone import Backbone, squared_error, without_gaps
from utils.errors import InputError

NORM_GROUPS = 16  # of encoders and decoders
SLOPE = 0.2  # negative slope of their leaky ReLUs
DIVISOR = 4  # the branches work at a quarter of the resolution


class State(NamedTuple):
    """Memory of both branches after a frame, in maps `(B, C, H/4, W/4)`."""

    physical: Tensor
    lstm: list[tuple[Tensor, Tensor]]  # hidden state and memory of every layer


class PhyDNet(Backbone):
    """PhyDNet forecaster for frames whose sides are multiples of 4.

    Every step reads a frame and predicts the next one, within [0, 1]. After the last observed frame, a step reads the
    prediction of the step before. The training loss is a sum over the predicted frames, the observed ones included, and
    over the kernels of the physical cell. The loss is about 25 times larger than a mean squared error.

    The recurrence runs in float32 even under autocast, because bfloat16 changes the gradients by a tenth or more.
    """

    divisor = DIVISOR

    def __init__(
        self,
        frame_shape: tuple[int, int, int] = (1, 128, 128),
        frames_in: int = 5,
        frames_out: int = 20,
        dim: int = 64,  # channels of both branches; the shared encoder begins with half as many
        lstm_dims: Sequence[int] = (128, 128),  # channels of the ConvLSTM's layers before the last, which has `dim`
        kernel_size: int = 7,  # of the derivatives, and number of orders of derivation in y and in x
    ):
        super().__init__(frame_shape, frames_in, frames_out)
        channels, height, width = self.frame_shape
        if height % DIVISOR or width % DIVISOR:
            raise InputError(
                f"phydnet needs a height and width that are multiples of {DIVISOR}, not {height} x {width} pixels."
            )
        if dim < 1 or dim % (2 * NORM_GROUPS):
            raise InputError(f"phydnet needs a dim that is a multiple of {2 * NORM_GROUPS}, not {dim}.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"phydnet needs an odd kernel_size, not {kernel_size}.")
        stem = dim // 2
        self.encoder = nn.Sequential(
            conv_block(channels, stem, stride=2), conv_block(stem, stem), conv_block(stem, dim, stride=2)
        )
        self.physical_encoder = nn.Sequential(conv_block(dim, dim), conv_block(dim, dim))
        self.residual_encoder = nn.Sequential(conv_block(dim, dim), conv_block(dim, dim))
        self.physical_cell = PhyCell(dim, kernel_size)
        self.residual_cells = nn.ModuleList(ConvLSTMCell(*dims) for dims in pairwise([dim, *lstm_dims, dim]))
        self.physical_decoder = nn.Sequential(deconv_block(dim, dim), deconv_block(dim, dim))
        self.residual_decoder = nn.Sequential(deconv_block(dim, dim), deconv_block(dim, dim))
        self.decoder = nn.Sequential(
            deconv_block(dim, stem, stride=2), deconv_block(stem, stem), deconv(stem, channels, stride=2)
        )

    def trend(self, observed: Tensor) -> Tensor:
        """See `Backbone.trend`; the forecast lies within [0, 1]."""
        return self.predict(observed, first=observed.shape[1])

    def forward(self, observed: Tensor, future: Tensor, generator=None) -> dict[str, Tensor]:
        """See `Backbone.forward`.

        The loss is the sum of the frames' mean squared errors and of `PhyCell.moment_errors`.
        """
        predictions = self.predict(without_gaps(observed))
        targets = torch.cat([observed[:, 1:], future], dim=1)
        frame_errors = squared_error(predictions, targets, dim=(2, 3, 4))
        loss = frame_errors.sum() + self.physical_cell.moment_errors().sum()
        return {"loss": loss, "deterministic": loss, "forecast": predictions[:, observed.shape[1] - 1 :]}

    def predict(self, observed: Tensor, first: int = 1) -> Tensor:
        """Predict the frames `first`, `first + 1`, ... up to the last forecast frame.

        Frames are counted from 0 at the first observed frame, and `1 <= first <= T`. `(B, T, C, H, W)` gives
        `(B, T + frames_out - first, C, H, W)`.
        """
        steps = observed.shape[1]
        device = observed.device.type
        precise = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with precise:
            features = self._encode(rearrange(observed, "b t c h w -> (t b) c h w"))
            states = self._observe(*(branch.chunk(steps) for branch in features))
            state = states[-1]
            predictions = list(self._decode(states[first - 1 :]).chunk(steps - first + 1))
            for _ in range(self.frames_out - 1):
                state = self._update(*self._encode(predictions[-1]), state)
                predictions.append(self._decode([state]))
        return torch.stack(predictions, dim=1)

    def _observe(self, physical: Sequence[Tensor], residual: Sequence[Tensor]) -> list[State]:
        """Return the states after each observed frame, given each frame's features."""
        batch, _, *size = physical[0].shape
        zeros = [physical[0].new_zeros(batch, cell.dim, *size) for cell in self.residual_cells]
        state = State(torch.zeros_like(physical[0]), [(memory, memory) for memory in zeros])
        states = []
        for features in zip(physical, residual, strict=True):
            state = self._update(*features, state)
            states.append(state)
        return states

    def _update(self, physical: Tensor, residual: Tensor, state: State) -> State:
        lstm = []
        for cell, before in zip(self.residual_cells, state.lstm, strict=True):
            residual, memory = cell(residual, *before)
            lstm.append((residual, memory))
        return State(self.physical_cell(physical, state.physical), lstm)

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the physical and of the residual branch."""
        maps = self.encoder(frames)
        return self.physical_encoder(maps), self.residual_encoder(maps)

    def _decode(self, states: list[State]) -> Tensor:
        """Predict a frame from each state; the frames lie along the batch axis."""
        physical = self.physical_decoder(torch.cat([state.physical for state in states]))
        residual = self.residual_decoder(torch.cat([state.lstm[-1][0] for state in states]))
        return torch.sigmoid(self.decoder(physical + residual))


class PhyCell(nn.Module):
    """Prediction by a learned differential equation, and correction by the frame.

    arXiv 2003.01460, eq. 6 to 8. Training with `moment_errors` pushes the convolution `derivatives` towards the partial
    derivatives of every input channel. Output channel `n = kernel_size * i + j` has the order `i` in y and `j` in x.
    """

    def __init__(self, dim: int, kernel_size: int):
        super().__init__()
        orders = kernel_size**2
        self.derivatives = nn.Conv2d(dim, orders, kernel_size, padding=kernel_size // 2)
        self.norm = nn.GroupNorm(kernel_size, orders)
        self.combine = nn.Conv2d(orders, dim, 1)
        self.gain = nn.Conv2d(2 * dim, dim, 3, padding=1)
        self.register_buffer("moment_basis", moment_basis(kernel_size), persistent=False)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        """Return the next state, given features and last state, all `(B, dim, H, W)`."""
        predicted = state + self.combine(self.norm(self.derivatives(state)))
        gain = torch.sigmoid(self.gain(torch.cat([features, state], dim=1)))  # Kalman gain, eq. 8
        return predicted + gain * (features - predicted)

    def moments(self) -> Tensor:
        """Return moment matrices `(dim, kernel_size ** 2, kernel_size, kernel_size)` in float64."""
        basis = self.moment_basis
        kernels = self.derivatives.weight.to(basis.dtype)
        return torch.einsum("ia,ncab,jb->cnij", basis, kernels, basis)

    def moment_errors(self) -> Tensor:
        """Mean squared distance of the moments from those of derivatives, `(dim,)`."""
        size = len(self.moment_basis)
        moments = self.moments().to(self.derivatives.weight.dtype)
        derivatives = torch.eye(size**2, device=moments.device).unflatten(1, (size, size))
        return (moments - derivatives).square().mean(dim=(1, 2, 3))


class ConvLSTMCell(nn.Module):
    """Convolutional LSTM without peepholes (Shi et al., NIPS 2015, arXiv 1506.04214)."""

    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.dim = dim
        self.gates = nn.Conv2d(dim_in + dim, 4 * dim, 3, padding=1)

    def forward(self, maps: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next hidden state and memory, both `(B, dim, H, W)`, for maps `(B, dim_in, H, W)`."""
        write, forget, read, candidate = self.gates(torch.cat([maps, hidden], dim=1)).chunk(4, dim=1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(write) * torch.tanh(candidate)
        return torch.sigmoid(read) * torch.tanh(memory), memory


def conv_block(dim_in: int, dim_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution that divides height and width by `stride`, group norm, leaky ReLU."""
    conv = nn.Conv2d(dim_in, dim_out, 3, stride, padding=1)
    return nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, dim_out), nn.LeakyReLU(SLOPE))


def deconv(dim_in: int, dim_out: int, stride: int = 1) -> nn.ConvTranspose2d:
    """3x3 transposed convolution that multiplies height and width by `stride`."""
    return nn.ConvTranspose2d(dim_in, dim_out, 3, stride, padding=1, output_padding=stride - 1)


def deconv_block(dim_in: int, dim_out: int, stride: int = 1) -> nn.Sequential:
    """`deconv`, group norm, leaky ReLU."""
    return nn.Sequential(deconv(dim_in, dim_out, stride), nn.GroupNorm(NORM_GROUPS, dim_out), nn.LeakyReLU(SLOPE))


def moment_basis(size: int) -> Tensor:
    """Matrix `P[i, a] = (a - size // 2) ** i / i!` in float64.

    The moments of a kernel `k` are `P k P^T` (Long et al., "PDE-Net", ICML 2018, arXiv 1710.09668).
    """
    orders = torch.arange(size, dtype=torch.float64)
    offsets = orders - size // 2
    factorials = torch.cat([torch.ones(1, dtype=torch.float64), orders[1:].cumprod(0)])
    return offsets ** orders[:, None] / factorials[:, None]


# Official parameter names -> ours. Layers are counted from 1 there, from 0 here.
_STACKS = {
    "encoder_E.c{}": "encoder",
    "encoder_Ep.c{}": "physical_encoder",
    "encoder_Er.c{}": "residual_encoder",
    "decoder_Dp.upc{}": "physical_decoder",
    "decoder_Dr.upc{}": "residual_decoder",
    "decoder_D.upc{}": "decoder",
}
PhyDNet.official_names = [
    ("encoder.decoder_D.upc3", "decoder.2"),
    *(
        (f"encoder.{stack.format(layer)}.main", f"{ours}.{layer - 1}")
        for stack, ours in _STACKS.items()
        for layer in (1, 2, 3)
    ),
    ("encoder.phycell.cell_list.0.F.conv1", "physical_cell.derivatives"),
    ("encoder.phycell.cell_list.0.F.bn1", "physical_cell.norm"),
    ("encoder.phycell.cell_list.0.F.conv2", "physical_cell.combine"),
    ("encoder.phycell.cell_list.0.convgate", "physical_cell.gain"),
    ("encoder.convcell.cell_list.{}.conv", "residual_cells.{}.gates"),
]
PhyDNet.official_dropped = [r"^phycell\.", r"^convcell\.", r"^k2m\."]  # the cells again, and moment matrices
