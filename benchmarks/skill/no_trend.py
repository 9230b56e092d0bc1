"""A backbone without a trend, around which the diffusion networks make the frames themselves."""

import torch
from torch import Tensor

from models import Backbone


class NoTrend(Backbone):
    """A constant trend, without weights and gradients, so that the residual is the forecast itself.

    It lies in the middle of the range, since samplers clip residuals to [-1, 1].
    """

    divisor = 1

    def trend(self, observed: Tensor) -> Tensor:
        """Return 0.5 everywhere, see `Backbone.trend`."""
        return torch.full_like(observed[:, :1], 0.5).repeat(1, self.frames_out, 1, 1, 1)
