"""Persistence, the baseline that every forecast has to beat."""

from einops import repeat
from torch import Tensor

from models.backbone import Backbone


class Persistence(Backbone):
    """Repetition of the last observed frame, without weights."""

    divisor = 1

    def trend(self, observed: Tensor) -> Tensor:
        """See `Backbone.trend`."""
        return repeat(observed[:, -1], "b c h w -> b t c h w", t=self.frames_out)
