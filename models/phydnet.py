"""PhyDNet (Le Guen and Thome, CVPR 2020, arXiv 2003.01460) in the variant of the DiffCast paper.

Two recurrent branches share an encoder and a decoder: a cell whose dynamics are a learned partial differential
equation, and a ConvLSTM for what such an equation cannot express.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.backbone import Backbone, squared_error, without_gaps
from models.winograd import WinogradConv
from utils.errors import InputError

NORM_GROUPS = 16  # of encoders and decoders
SLOPE = 0.2  # of their leaky ReLUs
DIVISOR = 4  # the branches work at a quarter of the resolution

# Official parameter names -> ours. Layers are counted from 1 there, from 0 here.
_STACKS = {
    "encoder_E.c{}": "encoder",
    "encoder_Ep.c{}": "physical_encoder",
    "encoder_Er.c{}": "residual_encoder",
    "decoder_Dp.upc{}": "physical_decoder",
    "decoder_Dr.upc{}": "residual_decoder",
    "decoder_D.upc{}": "decoder",
}
OFFICIAL_NAMES = [
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
OFFICIAL_DROPPED = [r"^phycell\.", r"^convcell\.", r"^k2m\."]  # the cells once more, and moment matrices


class DirectConv:
    """`nn.Conv2d` with the interface of `WinogradConv`."""

    def __init__(self, conv: nn.Conv2d):
        self.conv = conv

    def split(self, maps: Tensor) -> Tensor:
        return maps

    def __call__(self, *operands: Tensor) -> Tensor:
        maps = torch.cat(operands, dim=1)
        return F.conv2d(maps, self.conv.weight[:, : maps.shape[1]], self.conv.bias, padding=1)


GateConv = DirectConv | WinogradConv


class Twins:
    """The physical and the residual stack of blocks as one, prepared for the steps of a rollout.

    The channels are those of both, one after the other. A convolution takes the two halves apart if it has as many
    channels as both, and gives both the same maps if it has as many as one.
    """

    def __init__(self, convolve: Callable[..., Tensor], physical: nn.Sequential, residual: nn.Sequential):
        self.convolve = convolve  # function of the blocks' convolutions
        self.blocks = [
            [torch.cat(pair) for pair in zip(one.parameters(), other.parameters(), strict=True)]
            for one, other in zip(physical, residual, strict=True)
        ]

    def __call__(self, maps: Tensor) -> Tensor:
        for weight, bias, gain, offset in self.blocks:
            maps = self.convolve(maps, weight, bias, padding=1, groups=maps.shape[1] // weight.shape[1])
            maps = F.leaky_relu(F.group_norm(maps, 2 * NORM_GROUPS, gain, offset), SLOPE, inplace=True)
        return maps


class State(NamedTuple):
    """Memory of the two branches after a frame; every map is `(B, C, H/4, W/4)`."""

    physical: Tensor
    residual: Tensor  # hidden state of the ConvLSTM's last layer
    lstm: list[tuple[Tensor, Tensor]]  # hidden state, as an operand of the gates, and cell state of every layer

    @property
    def outputs(self) -> Tensor:
        """What the decoders read: the channels of both branches."""
        return torch.cat([self.physical, self.residual], dim=1)


class PhyDNet(Backbone):
    """PhyDNet forecaster; height and width must divide by 4.

    Every step reads a frame and predicts the next one, within [0, 1]; from the last observed frame on it reads its own
    prediction. The training loss is a sum over the predicted frames, the observed ones included, and over the kernels
    of the physical cell; it is some 25 times larger than a mean squared error.

    The recurrence runs in float32 even under autocast: bfloat16 changes the gradients by a tenth or more.
    """

    official_names = OFFICIAL_NAMES
    official_dropped = OFFICIAL_DROPPED

    def __init__(
        self,
        frame_shape: tuple[int, int, int] = (1, 128, 128),
        frames_in: int = 5,
        frames_out: int = 20,
        dim: int = 64,  # channels of both branches; the full encoder's stem has half as many
        lstm_dims: Sequence[int] = (128, 128),  # channels of the ConvLSTM's layers before the last, which has `dim`
        kernel_size: int = 7,  # of the derivatives; as many orders of derivation in y and in x
    ):
        super().__init__(frame_shape, frames_in, frames_out)
        channels, height, width = self.frame_shape
        if height % DIVISOR or width % DIVISOR:
            raise InputError(f"phydnet needs an --img_size that is a multiple of {DIVISOR}, not {height}x{width}.")
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

    def trend(self, frames_in: Tensor) -> Tensor:
        """See `Backbone.trend`; values are within [0, 1]."""
        return self.predict(frames_in, first=frames_in.shape[1])

    def forward(self, frames_in: Tensor, frames_out: Tensor, generator=None) -> dict[str, Tensor]:
        """See `Backbone.forward`; the loss is the sum of the frames' squared errors and of `PhyCell.moment_errors`."""
        predictions = self.predict(without_gaps(frames_in))
        targets = torch.cat([frames_in[:, 1:], frames_out], dim=1)
        frame_errors = squared_error(predictions, targets, dim=(2, 3, 4))
        loss = frame_errors.sum() + self.physical_cell.moment_errors().sum()
        return {"loss": loss, "deterministic": loss, "forecast": predictions[:, frames_in.shape[1] - 1 :]}

    def predict(self, frames_in: Tensor, first: int = 1) -> Tensor:
        """Predictions of the frames `first`, `first + 1`, ... to the last forecast one.

        Frames count from the first observed one, and `1 <= first <= T`: `(B, T, C, H, W)` gives
        `(B, T + frames_out - first, C, H, W)`.
        """
        observed = frames_in.shape[1]
        device = frames_in.device.type
        precise = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with precise:
            encoders = Twins(F.conv2d, self.physical_encoder, self.residual_encoder)
            decoders = Twins(F.conv_transpose2d, self.physical_decoder, self.residual_decoder)
            features = self._encode(rearrange(frames_in, "b t c h w -> (t b) c h w"), encoders)
            gates = [cell.gate_convolution(*features[0].shape[-2:]) for cell in self.residual_cells]
            states = self._observe(*(branch.chunk(observed) for branch in features), gates)
            outputs = torch.cat([s.outputs for s in states[first - 1 :]])
            predictions = list(self._decode(outputs, decoders).chunk(observed - first + 1))
            state = states[-1]
            for _ in range(self.frames_out - 1):
                state = self._update(*self._encode(predictions[-1], encoders), gates, state)
                predictions.append(self._decode(state.outputs, decoders))
        return torch.stack(predictions, dim=1)

    def _observe(self, physical: Sequence[Tensor], residual: Sequence[Tensor], gates: list[GateConv]) -> list[State]:
        """The states after each observed frame, from the features of both branches per frame."""
        state = self._initial_state(physical[0], gates)
        states = []
        for features in zip(physical, residual, strict=True):
            state = self._update(*features, gates, state)
            states.append(state)
        return states

    def _initial_state(self, features: Tensor, gates: list[GateConv]) -> State:
        batch, _, height, width = features.shape
        lstm = []
        for cell, convolve in zip(self.residual_cells, gates, strict=True):
            memory = features.new_zeros(batch, cell.dim, height, width)
            lstm.append((convolve.split(memory[:, :0]), memory))  # missing channels count as zeros
        zeros = torch.zeros_like(features)
        return State(zeros, zeros, lstm)

    def _update(self, physical: Tensor, residual: Tensor, gates: list[GateConv], state: State) -> State:
        operand = gates[0].split(residual)
        lstm = []
        for cell, convolve, (hidden, memory) in zip(self.residual_cells, gates, state.lstm, strict=True):
            residual, memory = cell(convolve(operand, hidden), memory)
            operand = convolve.split(residual)
            lstm.append((operand, memory))
        return State(self.physical_cell(physical, state.physical), residual, lstm)

    def _encode(self, frames: Tensor, encoders: Twins) -> tuple[Tensor, Tensor]:
        return encoders(self.encoder(frames)).chunk(2, dim=1)

    def _decode(self, outputs: Tensor, decoders: Twins) -> Tensor:
        physical, residual = decoders(outputs).chunk(2, dim=1)
        return torch.sigmoid(self.decoder(physical + residual))


class PhyCell(nn.Module):
    """Predict with a learned differential equation, then correct with the frame (arXiv 2003.01460, eq. 6 to 8).

    The convolution `derivatives` is pushed by `moment_errors` towards the partial derivatives of every input channel:
    output channel `n = kernel_size * i + j` to the order `i` in y and `j` in x.
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
        """The next state from the frame's features and the last state, all `(B, dim, H, W)`."""
        predicted = state + self.combine(self.norm(self.derivatives(state)))
        gain = torch.sigmoid(self.gain(torch.cat([features, state], dim=1)))  # Kalman gain, eq. 8
        return predicted + gain * (features - predicted)

    def moments(self) -> Tensor:
        """Moment matrices `(dim, kernel_size ** 2, kernel_size, kernel_size)` of the kernels, in float64."""
        basis = self.moment_basis
        kernels = self.derivatives.weight.to(basis.dtype)
        return torch.einsum("ia,ncab,jb->cnij", basis, kernels, basis)

    def moment_errors(self) -> Tensor:
        """Mean squared distance of the kernels' moments to those of the derivatives, per input channel: `(dim,)`."""
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

    def gate_convolution(self, height: int, width: int) -> GateConv:
        """The convolution of inputs and hidden state, prepared for the steps of a rollout."""
        if self.gates.weight.device.type == "cpu":
            return WinogradConv(self.gates, height, width)
        return DirectConv(self.gates)  # accelerators have their own fast algorithms

    def forward(self, gates: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The next hidden state and memory, `(B, dim, H, W)`, from gates `(B, 4 * dim, H, W)`."""
        write, forget, read, candidate = gates.chunk(4, dim=1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(write) * torch.tanh(candidate)
        return torch.sigmoid(read) * torch.tanh(memory), memory


def conv_block(dim_in: int, dim_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, group norm, leaky ReLU; divides height and width by `stride`."""
    conv = nn.Conv2d(dim_in, dim_out, 3, stride, padding=1)
    return nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, dim_out), nn.LeakyReLU(SLOPE))


def deconv(dim_in: int, dim_out: int, stride: int = 1) -> nn.ConvTranspose2d:
    """3x3 transposed convolution; multiplies height and width by `stride`."""
    return nn.ConvTranspose2d(dim_in, dim_out, 3, stride, padding=1, output_padding=stride - 1)


def deconv_block(dim_in: int, dim_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 transposed convolution, group norm, leaky ReLU; multiplies height and width by `stride`."""
    return nn.Sequential(deconv(dim_in, dim_out, stride), nn.GroupNorm(NORM_GROUPS, dim_out), nn.LeakyReLU(SLOPE))


def moment_basis(size: int) -> Tensor:
    """Matrix `P[i, a] = (a - size // 2) ** i / i!` in float64; `P k P^T` are the moments of a kernel `k`.

    Long et al., "PDE-Net", ICML 2018, arXiv 1710.09668.
    """
    orders = torch.arange(size, dtype=torch.float64)
    offsets = orders - size // 2
    factorials = torch.cat([torch.ones(1, dtype=torch.float64), orders[1:].cumprod(0)])
    return offsets ** orders[:, None] / factorials[:, None]
