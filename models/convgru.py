"""ConvGRU: a recurrent encoder-forecaster with convolutional gated units.

Shi et al., "Deep Learning for Precipitation Nowcasting: A Benchmark and A New Model", NeurIPS 2017,
arXiv 1706.03458. The strides are chosen for frames of about 128x128 pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.backbone import Backbone
from utils.errors import InputError

SLOPE = 0.2  # negative slope of every leaky ReLU


class ConvGRUCell(nn.Module):
    """Convolutional gated recurrent unit, unrolled over a sequence.

    With `*` a convolution, `r` and `u` the reset and update gates and `f` the leaky ReLU (Shi et al. 2017, eq. 2)::

        n  = f(Wn * x + r . (Rn * h))
        h' = u . h + (1 - u) . n

    The reset gate multiplies the result of the recurrent convolution. A cell built without input channels evolves
    its state freely.
    """

    def __init__(
        self,
        dim_in: int | None,  # input channels, or None for a cell without input
        dim: int,  # state channels
        kernel_size: int,  # of the recurrent convolution
    ):
        super().__init__()
        self.i2h = nn.Conv2d(dim_in, 3 * dim, 3, padding=1) if dim_in else None
        self.h2h = nn.Conv2d(dim, 3 * dim, kernel_size, padding=kernel_size // 2)
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, state: Tensor, inputs: Tensor | None, steps: int) -> Tensor:
        """Return the states after each step, `(B, steps, dim, H, W)`.

        The initial `state` is `(B, dim, H, W)`, and `inputs` are `(B, steps, dim_in, H, W)`.
        """
        # The input convolution does not depend on the state, so one call serves all steps.
        terms = each_frame(self.i2h, inputs).unbind(1) if self.i2h else [None] * steps
        states = []
        for term in terms:
            state = self._step(state, term)
            states.append(state)
        return torch.stack(states, dim=1)

    def _step(self, state: Tensor, input_term: Tensor | None) -> Tensor:
        reset, update, candidate = self.h2h(state).chunk(3, dim=1)
        x_reset, x_update, x_candidate = (0, 0, 0) if input_term is None else input_term.chunk(3, dim=1)
        reset = torch.sigmoid(x_reset + reset)
        update = torch.sigmoid(x_update + update)
        candidate = self.activation(x_candidate + reset * candidate)
        return update * state + (1 - update) * candidate


class EncoderLevel(nn.Module):
    """Convolution of stride 2, then a recurrence from a state of zeros."""

    def __init__(self, dim_in: int, dim_down: int, dim: int, kernel_size: int):
        super().__init__()
        self.down = nn.Conv2d(dim_in, dim_down, 3, stride=2, padding=1)
        self.cell = ConvGRUCell(dim_down, dim, kernel_size)
        self.activation = nn.LeakyReLU(SLOPE)
        self.dim = dim

    def forward(self, inputs: Tensor) -> Tensor:
        """Return states `(B, T, dim, H/2, W/2)` for `(B, T, dim_in, H, W)`."""
        inputs = self.activation(each_frame(self.down, inputs))
        batch, steps, _, height, width = inputs.shape
        # float32 even under autocast, because the state accumulates over the steps.
        state = inputs.new_zeros(batch, self.dim, height, width, dtype=torch.float32)
        return self.cell(state, inputs, steps)


class ForecasterLevel(nn.Module):
    """Recurrence from the encoder's last state, then a transposed convolution of stride 2."""

    def __init__(self, dim_in: int | None, dim: int, dim_up: int, kernel_size: int):
        super().__init__()
        self.cell = ConvGRUCell(dim_in, dim, kernel_size)
        self.up = nn.ConvTranspose2d(dim, dim_up, 4, stride=2, padding=1, bias=False)
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, state: Tensor, inputs: Tensor | None, steps: int) -> Tensor:
        """Return maps `(B, steps, dim_up, 2H, 2W)`.

        The `state` is `(B, dim, H, W)`, and `inputs` are `(B, steps, dim_in, H, W)`.
        """
        return self.activation(each_frame(self.up, self.cell(state, inputs, steps)))


class ConvGRU(Backbone):
    """Recurrent encoder-forecaster (Shi et al. 2017, section 3.1).

    The encoder runs from the finest level to the coarsest, and the forecaster back. Each level of the forecaster starts
    from the last state of its twin, and the coarsest has no other input. Forecast frames are not fed back. Frames may
    have any size, because they are padded with zeros to a multiple of 2 to the number of levels, and the forecast is
    cropped. The forecast may leave [0, 1]. Clip the gradient norm at 1 in training, because states are unbounded.
    """

    divisor = 1

    def __init__(
        self,
        frame_shape: tuple[int, int, int] = (1, 128, 128),  # C, H, W
        frames_in: int = 5,  # observed frames
        frames_out: int = 20,  # frames to forecast
        dims: Sequence[int] = (64, 192, 192),  # state channels of each level, finest first
        kernel_sizes: Sequence[int] = (5, 5, 3),  # of the recurrent convolution of each level, odd
        stem_dim: int = 8,  # channels at the full resolution's side of the finest level
    ):
        super().__init__(frame_shape, frames_in, frames_out)
        if len(dims) != len(kernel_sizes):
            raise InputError(
                f"dims has {len(dims)} levels, kernel_sizes {len(kernel_sizes)}: give one of each per level."
            )
        channels = self.frame_shape[0]
        downs = (stem_dim, *dims[1:])  # also the output channels of the levels of the forecaster
        below = (channels, *dims[:-1])
        above = (*downs[1:], None)
        self.encoder = nn.ModuleList(
            EncoderLevel(*level) for level in zip(below, downs, dims, kernel_sizes, strict=True)
        )
        self.forecaster = nn.ModuleList(
            ForecasterLevel(*level) for level in zip(above, dims, downs, kernel_sizes, strict=True)
        )
        self.head = nn.Sequential(
            nn.Conv2d(stem_dim, stem_dim, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(stem_dim, channels, 1),
        )
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as the benchmark's code: He's rule with the mean of both fans, zero biases."""
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.zeros_(parameter)
            else:
                fan = (parameter.shape[0] + parameter.shape[1]) / 2 * parameter[0, 0].numel()
                nn.init.normal_(parameter, std=(2 / (1 + SLOPE**2) / fan) ** 0.5)

    def trend(self, observed: Tensor) -> Tensor:
        """See `Backbone.trend`; the number of observed frames is free."""
        height, width = observed.shape[-2:]
        divisor = 2 ** len(self.encoder)
        features = F.pad(observed, (0, -width % divisor, 0, -height % divisor))
        states = []
        for level in self.encoder:
            features = level(features)
            states.append(features[:, -1])
        features = None
        for level, state in zip(reversed(self.forecaster), reversed(states), strict=True):
            features = level(state, features, self.frames_out)
        return each_frame(self.head, features)[..., :height, :width]


def each_frame(module: nn.Module, frames: Tensor) -> Tensor:
    """Apply a module to all frames `(B, T, C, H, W)` in one call."""
    images = module(rearrange(frames, "b t c h w -> (b t) c h w"))
    return rearrange(images, "(b t) c h w -> b t c h w", b=len(frames))


# Official parameter names -> ours. Levels are counted from 1 there, from 0 here.
ConvGRU.official_names = [
    *((f"{half}.{level + 1}", f"{half}.{level}") for half in ("encoder", "forecaster") for level in range(3)),
    ("head.0", "head.0"),
    ("head.1", "head.2"),
]
