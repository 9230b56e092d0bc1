"""Persistence: the last observed frame stays. The baseline every forecast has to beat."""

from einops import repeat
from torch import Tensor

from models.backbone import Backbone


class Persistence(Backbone):
    """Repeats the last observed frame; it has no weights."""

    def trend(self, observed: Tensor) -> Tensor:
        """See `Backbone.trend`."""
        return repeat(observed[:, -1], "b c h w -> b t c h w", t=self.frames_out)
