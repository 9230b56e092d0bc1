"""Synthetic radar sequences: partly predictable (motion, large scales), partly not (small scales).

A Gaussian field with the spectrum of rain moves with a steady wind while each of its wavelengths renews itself
at its own pace: large scales live for hours, small ones for minutes. This is the idea of S-PROG and STEPS (Seed
2003, J. Appl. Meteorol. 42; Bowler et al. 2006, Q. J. R. Meteorol. Soc. 132), with a continuous spectrum in
place of the levels of their cascade. A fixed map from normal quantiles to bytes then gives the intensities the
statistics of SEVIR's vertically integrated liquid (VIL).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dataset.source import VIL

DOMAIN = 1.5  # width of the periodic domain, in frames
SLOPE = 2.9  # spectral density ~ (k^2 + k0^2)^(-SLOPE / 2)
OUTER_SCALE = 400.0  # km, 1 / k0: the spectrum is flat beyond it
LIFETIME, LIFETIME_AT, LIFETIME_POWER = 3.0, 17.0, 0.75  # frames, km: lifetime grows with the wavelength
SPEED = (1.5, 5.5)  # km per frame, range of a sequence's mean motion
SHEAR = 0.6  # km per frame, rms of the motion's deviation from that mean
SHEAR_SCALE = 120.0  # km, shortest wavelength of the deviation
OFFSET, TREND = 0.35, 0.15  # std of a sequence's mean level, and of its growth or decay at either end
MARGIN = 2  # pixels of periodic padding that bicubic interpolation needs

MAX_BYTE = 254  # SEVIR marks missing pixels with 255
# P(byte >= level), about the fractions of real SEVIR storms
EXCEEDANCE = {
    **{1: 0.62, 4: 0.53, 8: 0.40, 16: 0.30, 74: 0.15, 133: 0.035, 160: 0.010, 181: 0.005, 219: 0.001},
    MAX_BYTE: 0.0002,
}


def storms(events: int, frames: int = 49, size: int = 128, seed: int = 0, first: int = 0) -> Tensor:
    """Generate `events` events, from number `first`, of the series of `seed`.

    Returns VIL bytes, uint8 `(events, frames, size, size)`, five minutes and `384 / size` km apart. An event
    depends on `seed`, its number, `frames` and `size` alone, not on what is generated with it.
    """
    out = torch.empty(events, frames, size, size, dtype=torch.uint8)
    for i in range(events):
        state = np.random.SeedSequence([seed, first + i]).generate_state(1, np.uint64)
        out[i] = to_bytes(latent_storm(frames, size, torch.Generator().manual_seed(int(state[0]))))
    return out


def to_bytes(latent: Tensor) -> Tensor:
    """Map a standard normal field to VIL bytes by `EXCEEDANCE`."""
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(1 - torch.tensor(list(EXCEEDANCE.values())))
    levels = torch.tensor(list(EXCEEDANCE), dtype=torch.float32)
    slopes = levels.diff() / quantiles.diff()
    piece = torch.bucketize(latent, quantiles[1:-1])
    value = levels[piece] + slopes[piece] * (latent - quantiles[piece])
    value = torch.where(latent < quantiles[0], 0.0, value).clamp(max=MAX_BYTE)
    return value.to(torch.uint8)  # cuts off the fraction, so that the probabilities hold exactly


def latent_storm(frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Generate a standard normal sequence `(frames, size, size)`."""
    offset, trend = torch.randn(2, generator=generator) * torch.tensor([OFFSET, TREND])
    positions = trajectories(frames, size, generator)
    field = evolving_field(frames, round(DOMAIN * size), VIL.extent / size, generator)
    moved = sample_periodic(field[:, None], positions, mode="bicubic")[:, 0]
    age = torch.linspace(-1, 1, frames)
    variance = OFFSET**2 + TREND**2 * age.square().mean()
    return (1 - variance).sqrt() * moved + (offset + trend * age)[:, None, None]


def evolving_field(frames: int, grid: int, pixel: float, generator: torch.Generator) -> Tensor:
    """Generate a periodic field `(frames, grid, grid)` that does not move.

    The field has variance 1 and renews itself. Each Fourier mode is a critically damped AR(2) process: it decays as
    radar echoes do, whose correlation falls slowly at first, unlike that of an AR(1) process. `pixel` is the spacing of
    the grid in km.
    """
    k = wavenumbers(grid, pixel)
    lifetime = LIFETIME * (LIFETIME_AT * k.clamp(min=1 / (grid * pixel))) ** -LIFETIME_POWER
    a = torch.exp(-1 / lifetime)
    correlation = 2 * a / (1 + a**2)  # of neighbouring frames
    innovation = ((1 - a**2) ** 3 / (1 + a**2)).sqrt()
    modes = torch.randn(frames, *k.shape, dtype=torch.complex64, generator=generator)
    modes[1:2] = correlation * modes[:1] + (1 - correlation**2).sqrt() * modes[1:2]
    for t in range(2, frames):
        modes[t] = 2 * a * modes[t - 1] - a**2 * modes[t - 2] + innovation * modes[t]
    density = (k**2 + OUTER_SCALE**-2) ** (-SLOPE / 2)
    return random_field(modes, density)


def trajectories(frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Positions of pixels in the unmoved field, `(frames, size, size, 2)`.

    Coordinates are x and y in pixels. The wind is steady, so that a frame's positions are one step upstream of those of
    the frame before. The field is unmoved in the middle of the sequence, which halves the strain that builds up towards
    its ends.
    """
    pixel = VIL.extent / size
    draw = torch.rand(4, generator=generator)
    speed, angle = SPEED[0] + (SPEED[1] - SPEED[0]) * draw[0], 2 * math.pi * draw[1]
    k = wavenumbers(round(DOMAIN * size), pixel)
    modes = torch.randn(2, *k.shape, dtype=torch.complex64, generator=generator)
    shear = random_field(modes, (k < 1 / SHEAR_SCALE).float()) * SHEAR / math.sqrt(2)
    wind = (shear + speed * torch.stack([angle.cos(), angle.sin()])[:, None, None]) / pixel
    axis = torch.arange(size, dtype=torch.float32)
    # The fraction of a pixel makes interpolation smooth the middle frame like the others.
    middle = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1) - draw[2:]
    before = follow(wind, middle, frames // 2)
    after = follow(-wind, middle, frames - 1 - frames // 2)
    return torch.stack([*reversed(before), middle, *after])


def follow(wind: Tensor, position: Tensor, steps: int) -> list[Tensor]:
    """Follow positions `(h, w, 2)` along a wind `(2, grid, grid)`.

    The wind is periodic, in pixels per step. Returns the positions after 1 to `steps` steps.
    """
    positions = [position]
    for _ in range(steps):
        step = sample_periodic(wind[None], positions[-1][None], mode="bilinear")[0]
        positions.append(positions[-1] + rearrange(step, "c h w -> h w c"))
    return positions[1:]


def wavenumbers(grid: int, pixel: float) -> Tensor:
    """Wavenumbers of a real field `(grid, grid // 2 + 1)`, cycles/km."""
    ky, kx = torch.fft.fftfreq(grid, pixel), torch.fft.rfftfreq(grid, pixel)
    return torch.hypot(ky[:, None], kx)


def random_field(modes: Tensor, density: Tensor) -> Tensor:
    """Turn white modes into real fields `(N, grid, grid)`.

    The fields have variance 1 and mean 0. Modes are `(N, grid, grid // 2 + 1)`, and `density` `(grid, grid // 2 + 1)`
    is their power spectrum, up to a factor.
    """
    grid = density.shape[0]
    density = density.clone()
    density[0, 0] = 0
    columns = torch.full((grid // 2 + 1,), 2.0)  # most columns stand for their mirror images too
    columns[0] = 1
    if grid % 2 == 0:
        columns[-1] = 1
    # In a column without mirror image the inverse transform drops the antisymmetric part, half the power.
    amplitude = (density / (columns * density).sum() * 2 / columns).sqrt() * grid**2
    return torch.fft.irfft2(modes * amplitude, s=(grid, grid))


def sample_periodic(fields: Tensor, positions: Tensor, mode: str) -> Tensor:
    """Interpolate periodic fields `(N, C, grid, grid)` at `(N, h, w, 2)`."""
    grid = fields.shape[-1]
    padded = F.pad(fields, (MARGIN,) * 4, mode="circular")
    where = (positions % grid + MARGIN) * (2 / (padded.shape[-1] - 1)) - 1
    return F.grid_sample(padded, where, mode=mode, padding_mode="border", align_corners=True)
