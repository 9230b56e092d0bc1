"""Samplers: from noise to data by way of a denoiser, no network in sight.

Every sampler has the signature `sampler(denoise, noise, schedule, steps, ...)`. `denoise(x_t, time) -> v` takes
`(B, ...)` and integer times `(B,)`; `noise` is standard normal `(B, ...)`; the result has its shape.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from diffcast.process import Schedule, noise_from_x0, x0_from_v

Denoiser = Callable[[Tensor, Tensor], Tensor]


def ddim_times(timesteps: int, steps: int) -> list[int]:
    """The `steps + 1` times of DDIM, from `timesteps - 1` down to -1, which stands for clean data."""
    # float32 on purpose: for some numbers of steps a value falls just below an integer and is truncated to the one
    # before, and the official lists have it so.
    return torch.linspace(-1, timesteps - 1, steps + 1, dtype=torch.float32).int().flip(0).tolist()


def ddim(denoise: Denoiser, noise: Tensor, schedule: Schedule, steps: int) -> Tensor:
    """Denoising diffusion implicit model (Song et al. 2021, arXiv 2010.02502), deterministic (eta = 0).

    The data estimate is clamped to [-1, 1] at every step, and the noise estimate derived from the clamped one.
    """
    times = ddim_times(schedule.timesteps, steps)
    x = noise
    for now, then in itertools.pairwise(times):
        time = torch.full((len(x),), now, device=x.device)
        x0 = x0_from_v(schedule, x, denoise(x, time), time).clamp(-1, 1)
        if then >= 0:
            signal = schedule.alphas_cumprod[then]
            x = signal.sqrt() * x0 + (1 - signal).sqrt() * noise_from_x0(schedule, x, x0, time)
    return x0


SAMPLERS: dict[str, Callable[..., Tensor]] = {"ddim": ddim}
