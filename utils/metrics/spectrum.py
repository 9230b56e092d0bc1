"""Radially averaged power spectrum."""

import torch
from torch import Tensor

from utils.metrics.score import Score

CAPACITY = 256  # bins of the state, so that its shape does not depend on that of the frames


class PowerSpectrum(Score):
    """Radially averaged power spectral density of forecast and target, in [0, 1] units squared.

    The power of a frame is |FFT|^2 / (H W), averaged over wavenumbers (cycles per frame) that round to 0, 1, 2 ..
    up to half the longer side L (Harris et al. 2001; Ruzanski and Chandrasekar 2011); bin r has the frequency
    r / L cycles per pixel. Frames longer than 512 pixels share a bin among neighbouring wavenumbers.
    Spectra are averaged over sequences, members and, without `_per_lead`, lead times; frames with a
    missing pixel are left out. `spectrum_ratio_high` is the mean of the bins from 0.25 cycles per pixel, the octave
    of the finest structures, over that of the target: below 1 for a blurred forecast.

    State: sums over frames, `forecast` (mean of the members) and `target`, float64 `(T, 256)`, the number of
    `frames` and the sum of their `sides` L, int64 `(T,)`.
    """

    def __init__(
        self,
        leads: int,  # T, forecast frames
    ):
        sums = {name: torch.zeros(leads, CAPACITY, dtype=torch.float64) for name in ("forecast", "target")}
        super().__init__(leads, sums | {name: torch.zeros(leads, dtype=torch.int64) for name in ("frames", "sides")})

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Add the spectra of the frames."""
        complete = ~torch.isnan(target.sum(dim=(2, 3, 4)))
        spectra = {
            "forecast": radial_spectrum(forecast).mean(dim=(1, 3)),
            "target": radial_spectrum(target.nan_to_num(0)).mean(dim=2),
        }
        padding = CAPACITY - spectra["target"].shape[-1]
        terms = {
            name: torch.nn.functional.pad(power * complete[..., None], (0, padding)) for name, power in spectra.items()
        }
        return terms | {"frames": complete.long(), "sides": complete * max(target.shape[-2:])}

    def compute(self) -> dict:
        """Return the spectra, in bins of `spectrum_frequency` cycles per pixel."""
        frames = self._sums["frames"].sum()
        side = int((self._sums["sides"].sum() / frames.clamp(min=1)).round())
        bins, width = _bins(side)
        frequency = [(width * index + (width - 1) / 2) / side for index in range(bins)]
        scores = {"spectrum_frequency": frequency}
        high = {}
        for name, key in (("forecast", "spectrum"), ("target", "spectrum_target")):
            power = self._sums[name][:, :bins]
            mean = power.sum(dim=0) / frames
            scores |= {key: mean.tolist(), f"{key}_per_lead": (power / self._sums["frames"][:, None]).tolist()}
            high[name] = mean[[value >= 0.25 for value in frequency]].mean()
        return scores | {"spectrum_ratio_high": (high["forecast"] / high["target"]).item()}


def radial_spectrum(frames: Tensor) -> Tensor:
    """Spectrum `(..., R)` of frames `(..., H, W)`, float64, in bins `0 .. R - 1` of wavenumbers."""
    height, width = frames.shape[-2:]
    coefficients = torch.fft.rfft2(frames.double())
    power = coefficients.real.square().addcmul_(coefficients.imag, coefficients.imag).div_(height * width)
    rows = torch.fft.fftfreq(height, 1 / height, device=frames.device)[:, None]
    columns = torch.fft.rfftfreq(width, 1 / width, device=frames.device)
    bins, group = _bins(max(height, width))
    index = (torch.hypot(rows, columns).round().long() // group).clamp(max=bins).flatten()
    halves = torch.ones_like(power[..., 0, :].flatten()[: len(columns)]) * 2
    halves[0] = 1  # the real transform stores the other columns once for both signs
    if width % 2 == 0:
        halves[-1] = 1
    weight = halves.expand(height, -1).flatten()
    zeros = power.new_zeros(*power.shape[:-2], bins + 1)
    total = zeros.index_add(-1, index, power.flatten(-2) * weight)
    return (total / torch.bincount(index, weight, bins + 1))[..., :bins]


def _bins(side: int) -> tuple[int, int]:
    """Return the number of bins for frames with a longer side, and of wavenumbers per bin."""
    wavenumbers = (side + 1) // 2
    group = max(1, -(-wavenumbers // CAPACITY))
    return -(-wavenumbers // group), group
