"""Learned perceptual distance between frames."""

from collections.abc import Callable
from urllib.error import URLError

import torch
from einops import rearrange, repeat
from torch import Tensor

from utils.errors import InputError
from utils.metrics.score import Score, split_missing


class PerceptualDistance(Score):
    """LPIPS of every frame (Zhang et al. 2018), averaged over sequences and members, then over lead times; 0 is best.

    Frames with a missing pixel are left out. State: the sum `lpips`, float64 `(T,)`, and the number of `frames`,
    int64 `(T,)`.
    """

    def __init__(
        self,
        leads: int,  # T, forecast frames
        network: Callable[[Tensor, Tensor], Tensor],  # see `load_lpips`
    ):
        sums = {"lpips": torch.zeros(leads, dtype=torch.float64), "frames": torch.zeros(leads, dtype=torch.int64)}
        super().__init__(leads, sums)
        self.network = network

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Add the distance of every frame."""
        batch, members, leads = forecast.shape[:3]
        filled, _ = split_missing(target)
        distances = [
            self.network(_as_pictures(member), _as_pictures(filled)).view(batch, leads) for member in forecast.unbind(1)
        ]
        complete = ~torch.isnan(target.sum(dim=(2, 3, 4)))
        return {"lpips": sum(distances).double() * complete, "frames": members * complete}

    def compute(self) -> dict:
        """Return `lpips` and its curve over lead times."""
        per_lead = self._sums["lpips"] / self._sums["frames"]
        return {"lpips": per_lead.mean().item(), "lpips_per_lead": per_lead.tolist()}


def load_lpips() -> torch.nn.Module:
    """Return the AlexNet version 0.1 of LPIPS. Raises `InputError` if the package or its weights are missing."""
    try:
        import lpips

        return lpips.LPIPS(net="alex", version="0.1", verbose=False).eval()
    except ImportError as error:
        raise InputError("LPIPS needs a package that is not installed; run `pip install lpips`.") from error
    except URLError as error:
        raise InputError(
            "LPIPS needs the ImageNet weights of AlexNet, which torchvision could not download; run it once online."
        ) from error


def _as_pictures(frames: Tensor) -> Tensor:
    """Frames `(B, T, 1, H, W)` in [0, 1] as grey pictures `(B T, 3, H, W)` in [-1, 1]."""
    return 2 * repeat(rearrange(frames, "b t 1 h w -> (b t) 1 h w"), "n 1 h w -> n c h w", c=3) - 1
