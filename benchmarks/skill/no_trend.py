"""A backbone without a trend, around which the diffusion networks make the frames themselves."""

import torch
from torch import Tensor

from models import Backbone


class NoTrend(Backbone):
    """A dry trend, without weights and gradients. Its residual is the forecast itself."""

    divisor = 1

    def trend(self, observed: Tensor) -> Tensor:
        """Return zeros, see `Backbone.trend`."""
        return torch.zeros_like(observed[:, :1]).repeat(1, self.frames_out, 1, 1, 1)
