"""The dressed trend, an ensemble without learning.

Any ensemble with about the right spread has a better CRPS than the trend alone. Dressing a deterministic forecast with
its errors on past cases (Roulston and Smith 2003, Tellus A 55) gives such an ensemble without training. Entire residual
fields keep the structure of the errors in space and time. A generative model has to be better than this.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dataset.sequences import Sequences
from diffcast.forecaster import place
from diffcast.loading import EvaluationBatches, load_batches, spread_at_random
from diffcast.model import DiffCast, Generators
from models import Backbone
from models.backbone import without_gaps
from utils.errors import InputError

LOG = logging.getLogger(__name__)
POOL = 256  # residual fields, which take 160 MiB for 20 frames of 128 x 128


class Dressed(nn.Module):
    """A backbone's trend plus residuals that it left in unrelated sequences.

    The residuals `(P, T, C, H, W)` are target minus trend, in units of the frames. `dress` computes them.
    """

    def __init__(self, backbone: Backbone, residuals: Tensor):
        super().__init__()
        self.backbone = backbone
        self.register_buffer("residuals", residuals, persistent=False)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""
        return self.backbone.frame_shape

    @property
    def frames_in(self) -> int:
        """Number of observed frames."""
        return self.backbone.frames_in

    @property
    def frames_out(self) -> int:
        """Number of forecast frames."""
        return self.backbone.frames_out

    def forecast(self, observed: Tensor, members: int = 1, generator: Generators = None) -> Tensor:
        """Forecast an ensemble `(B, M, T, C, H, W)` in [0, 1]."""
        return self.dress_trend(self.backbone.forecast(observed)[:, 0], members, generator)

    @torch.no_grad()
    def dress_trend(self, trend: Tensor, members: int, generator: Generators = None) -> Tensor:
        """Add residuals to a trend `(B, T, C, H, W)`.

        Returns an ensemble `(B, M, T, C, H, W)` in [0, 1].

        Each sequence draws its residuals without replacement, from its own generator if it has one. Raises
        `InputError` if there are fewer residuals than members.
        """
        _check_enough(len(self.residuals), members)
        each = generator if isinstance(generator, Sequence) else [generator] * len(trend)
        drawn = [
            torch.randperm(len(self.residuals), generator=one, device=self.residuals.device)[:members] for one in each
        ]
        return (trend.float().clamp(0, 1)[:, None] + self.residuals[torch.stack(drawn)]).clamp_(0, 1)


def dress(
    forecaster: Backbone | DiffCast,  # a DiffCast lends its backbone, for comparison with its own trend
    train_set: Sequences,  # items (T_in + T, C, H, W)
    members: int = 1,  # the most that will be asked for
    seed: int = 0,  # of the choice of training sequences
    device: torch.device | str = "cpu",
    batch_size: int = 8,
) -> Dressed:
    """Collect the residuals of training sequences.

    The sequences are evenly spaced in the set.

    They are `POOL`, more for an ensemble with more members, or all of a smaller set. The forecaster is moved to the
    device and put into evaluation mode. Raises `InputError` if there are fewer training sequences than members.
    """
    _check_enough(len(train_set), members)
    device = torch.device(device)
    place(forecaster, device).eval()
    backbone = forecaster.backbone if isinstance(forecaster, DiffCast) else forecaster
    chosen = spread_at_random(len(train_set), min(len(train_set), max(POOL, members)), seed, 5)
    LOG.info("collecting the residuals of %d of %d training sequences", len(chosen), len(train_set))
    # Half precision is off by 1/16 of a byte at most, and halves the memory.
    residuals = torch.empty(len(chosen), backbone.frames_out, *backbone.frame_shape, dtype=torch.float16, device=device)
    batches = load_batches(train_set, EvaluationBatches(chosen, batch_size), workers=0, device=device)
    for number, (_, frames) in enumerate(batches):
        observed, future = frames.tensor_split([backbone.frames_in], dim=1)
        residual = future - backbone.forecast(without_gaps(observed))[:, 0]
        first = number * batch_size
        residuals[first : first + batch_size] = residual.nan_to_num(0)  # unknown where radar data is missing
    return Dressed(backbone, residuals)


def _check_enough(residuals: int, members: int) -> None:
    if residuals < members:
        raise InputError(
            f"dressing gives each of {members} members the residual of another training sequence, but there are "
            f"only {residuals}; ask for fewer members or train on more data."
        )
