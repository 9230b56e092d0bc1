"""What LocalResidual is trained for: a diffusion loss, a scoring rule, or both.

- `diffusion`: the squared error of `v` at random diffusion times (DiffCast, section 3.2).
- `crps`: the network maps pure noise to a segment in one evaluation. The CRPS of M particles, from different noise, is
  the loss, as in FGN (Alet et al. 2025, arXiv 2506.10772) and AIFS-CRPS (Lang et al. 2024, arXiv 2412.15832).
- `hybrid`: at random diffusion times, the finest layers read auxiliary noise. The CRPS of M particles counts the more
  the noisier the segment is, and the squared error of `v` counts the rest (JWS, arXiv 2610.12189).

`N` is the number of segments in a batch, and a segment is `(L, C, H, W)`.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from diffcast import process
from diffcast.process import Schedule
from diffcast.residual import Denoiser


class Objective(NamedTuple):
    """What the weights of an objective need, and how they are sampled."""

    sampler: str  # by default
    sampling_steps: int  # by default
    auxiliary: int = 0  # channels of noise that the finest layers read


OBJECTIVES = {
    "diffusion": Objective("dpm", 10),
    "crps": Objective("ddim", 1),
    "hybrid": Objective("ddim", 4, auxiliary=4),
}


class Segments(NamedTuple):
    """Segments to learn, and the network that sees all they are conditioned on."""

    denoise: Denoiser
    schedule: Schedule
    target: Tensor  # (N, L, C, H, W): scaled residual, 0 where it is missing
    valid: Tensor  # bool, of the same shape


def diffusion_loss(segments: Segments, time: Tensor, noise: Tensor, weight: str) -> Tensor:
    """Weighted squared error of `v` at times `(N,)`, with noise like the target."""
    denoise, schedule, target, valid = segments
    predicted = denoise(process.diffuse(schedule, target, noise, time), time)
    v = process.v_target(schedule, target, noise, time)
    return process.weighted_loss(schedule, predicted, v, time, valid, weight)


def crps_loss(segments: Segments, noise: Tensor, fairness: float, scales: Sequence[int]) -> Tensor:
    """CRPS of the segments that noise `(N, M, L, C, H, W)` becomes in one evaluation."""
    denoise, schedule, target, valid = segments
    flat = noise.flatten(0, 1)
    time = torch.full((len(flat),), schedule.timesteps - 1, device=noise.device)
    particles = process.x0_from_v(schedule, flat, denoise(flat, time).float(), time).unflatten(0, noise.shape[:2])
    return pooled_crps(particles - target[:, None], valid, fairness, scales).mean()


def hybrid_loss(
    segments: Segments,
    time: Tensor,  # (N,)
    noise: Tensor,  # (N, L, C, H, W)
    particles: int,
    fairness: float,
    scales: Sequence[int],
) -> Tensor:
    """CRPS and squared error of M predictions of `v`, weighted by the diffusion time.

    The denoiser returns `(N M, L, C, H, W)`, as it holds auxiliary noise for M particles of each segment.
    """
    denoise, schedule, target, valid = segments
    predicted = denoise(process.diffuse(schedule, target, noise, time), time).float()
    errors = predicted.unflatten(0, (-1, particles)) - process.v_target(schedule, target, noise, time)[:, None]
    share = time / schedule.timesteps
    squares = _mean_of_valid(errors.square().mean(1), valid.float())
    return (share * pooled_crps(errors, valid, fairness, scales) + (1 - share) * squares).mean()


def crps(errors: Tensor, fairness: float = 1.0) -> Tensor:
    """CRPS of M particles `(N, M, ...)` from their errors, particle minus target, `(N, ...)`.

    `fairness` 1 is the fair estimator, which a reliable ensemble of any size minimises (Ferro 2014). `fairness` 0
    scores the M particles as they are. Between them lies the almost fair CRPS (Lang et al. 2024).
    """
    m = errors.shape[1]
    distances = sum((a - b).abs() for a, b in itertools.combinations(errors.unbind(1), 2))
    return errors.abs().mean(1) - (fairness / (m * (m - 1)) + (1 - fairness) / m**2) * distances


def pooled_crps(errors: Tensor, valid: Tensor, fairness: float, scales: Sequence[int]) -> Tensor:
    """Mean CRPS `(N,)` of errors `(N, M, L, C, H, W)` over scales.

    A scale is the side of the squares over which errors are averaged. All scales have equal weight. A square of
    `scale * scale` pixels counts by its share of valid pixels.
    """
    errors = torch.where(valid[:, None], errors, 0)
    found = 0
    for scale in scales:
        known = _pooled(valid.float(), scale)
        means = _pooled(errors, scale) / known.clamp(min=1 / scale**2)[:, None]
        found = found + _mean_of_valid(crps(means, fairness), known)
    return found / len(scales)


def _pooled(frames: Tensor, scale: int) -> Tensor:
    """Sums over squares of pixels of frames `(..., H, W)`, divided by the number of pixels in a complete square."""
    if scale == 1:
        return frames
    flat = rearrange(frames.flatten(0, -3), "n h w -> n 1 h w")
    height, width = frames.shape[-2:]
    flat = F.pad(flat, (0, -width % scale, 0, -height % scale))
    return F.avg_pool2d(flat, scale)[:, 0].unflatten(0, frames.shape[:-2])


def _mean_of_valid(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean `(N,)` of values `(N, ...)`, 0 where all weights are."""
    total = weight.flatten(1).sum(1)
    return (weight * values).flatten(1).sum(1) / torch.where(total > 0, total, 1)
