"""Samplers: from noise to data with a denoiser and without a network.

`DiffCast.generate` takes any function with this signature::

    sampler(denoise, noise, schedule, steps, clip=1.0, draw=torch.randn_like) -> Tensor

- `denoise(x_t, time) -> v` takes `(B, ...)` and integer times `(B,)`. A sampler calls it `steps` times.
- `noise`, standard normal `(B, ...)`, is where sampling starts. The result has its shape.
- `schedule` is a `diffcast.process.Schedule`.
- `clip` clamps every estimate of the data to [-clip, clip]. `math.inf` turns that off.
- `draw(x)` returns standard normal noise like `x`. Samplers that add noise (`eta` > 0) call it between evaluations. A
  `draw` with a generator for each sample makes samples independent of their batch.

The samplers of this file also take `spacing(schedule, steps)`, which chooses the times, noisiest first.

`ddim` works in the variables of `diffcast.process`. The others integrate the same probability flow in the variables of
EDM (Karras et al. 2022, arXiv 2206.00364). There, `y = x_t / sqrt(A_t)` is data plus noise of standard deviation
`exp(-l)`, where `l` is `Schedule.half_log_snr`, and `dy/dl = x0(y, l) - y`. The linear part is integrated exactly, so
that steps may be long: for a constant estimate `x0`, a step of length `h` leaves `exp(-h)` of the distance to it.
Coefficients are Python numbers in double precision, so that nothing waits for the device.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from diffcast.process import Schedule, noise_from_x0, x0_from_v

Denoiser = Callable[[Tensor, Tensor], Tensor]
Spacing = Callable[[Schedule, int], list[int]]
Draw = Callable[[Tensor], Tensor]
Sampler = Callable[..., Tensor]  # with the signature above


def uniform_in_time(schedule: Schedule, steps: int) -> list[int]:
    """Evenly spaced times, beginning at the last of the schedule; the official spacing."""
    _check(schedule, steps)
    # float32 on purpose. For certain numbers of steps, a value falls just below an integer and is truncated to the
    # integer before, as in the official lists.
    times = torch.linspace(-1, schedule.timesteps - 1, steps + 1, dtype=torch.float32).int()
    return times[1:].flip(0).tolist()


def uniform_in_log_snr(schedule: Schedule, steps: int) -> list[int]:
    """Times evenly spaced in log-SNR, from the last but one to 0.

    The schedule's last time is left out unless it is needed. As its beta is clipped, it takes almost a third of the
    range of log-SNR without any signal in it. Times are rounded to the integers that the network was trained at. This
    loses nothing, because samplers step by the log-SNR of the rounded times. Where more times than integers fall into
    an interval, they are moved apart.
    """
    _check(schedule, steps)
    levels = schedule.half_log_snr
    wanted = torch.linspace(levels[max(schedule.timesteps - 2, 0)], levels[0], steps, dtype=levels.dtype)
    nearest = (wanted[:, None] - levels).abs().argmin(dim=1)
    number = torch.arange(steps)
    apart = (nearest + number).cummin(dim=0).values - number
    return torch.maximum(apart, steps - 1 - number).tolist()


def ddim(
    denoise: Denoiser,
    noise: Tensor,
    schedule: Schedule,
    steps: int,
    eta: float = 0.0,  # 0: deterministic; 1: ancestral sampling
    clip: float = 1.0,
    spacing: Spacing = uniform_in_time,
    draw: Draw = torch.randn_like,
) -> Tensor:
    """Denoising diffusion implicit model (Song et al. 2021, arXiv 2010.02502).

    Equations 12 and 16. The noise estimate is derived from the clipped data estimate.
    """
    signal, x = schedule.alphas_cumprod, noise
    for now, then in itertools.pairwise([*spacing(schedule, steps), -1]):  # -1 stands for clean data
        x0 = _estimate(denoise, schedule, clip, x, now)
        if then >= 0:
            fresh = eta * ((1 - signal[then]) / (1 - signal[now]) * (1 - signal[now] / signal[then])).sqrt()
            kept = (1 - signal[then] - fresh**2).sqrt()
            x = signal[then].sqrt() * x0 + kept * noise_from_x0(schedule, x, x0, _times(x, now))
            if eta:
                x = x + fresh * draw(x)
    return x0


def dpm_solver(
    denoise: Denoiser,
    noise: Tensor,
    schedule: Schedule,
    steps: int,
    eta: float = 0.0,  # 0: deterministic; 1: the reverse stochastic differential equation
    clip: float = 1.0,
    spacing: Spacing = uniform_in_log_snr,
    draw: Draw = torch.randn_like,
) -> Tensor:
    """DPM-Solver++(2M) and, with `eta` 1, SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095).

    The solver is of second order, as each step assumes that the data estimate goes on changing as it did over the step
    before. The first step and the last, to clean data, are of first order.
    """
    times, lengths = _grid(schedule, spacing, steps)
    estimate = partial(_scaled_estimate, denoise, schedule, clip)
    y = noise / _scale(schedule, times[0])
    x0 = previous = estimate(y, times[0])
    length_before = math.inf
    for then, length in zip(times[1:], lengths, strict=True):
        midway = x0 + length / (2 * length_before) * (x0 - previous)
        y = torch.lerp(midway, y, math.exp(-(1 + eta) * length))
        if eta:
            y = y + _deviation(schedule, then) * math.sqrt(-math.expm1(-2 * eta * length)) * draw(y)
        previous, x0, length_before = x0, estimate(y, then), length
    return x0


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "dpm": dpm_solver,
    "sde-dpm": partial(dpm_solver, eta=1.0),
}
# Default number of network evaluations per segment. That of ddim is official; the others lose no measurable skill.
STEPS = {"ddim": 250, "dpm": 10, "sde-dpm": 10}


def _check(schedule: Schedule, steps: int) -> None:
    if not 1 <= steps <= schedule.timesteps:
        raise ValueError(f"steps must lie between 1 and {schedule.timesteps}, the timesteps of the model, not {steps}.")


def _estimate(denoise: Denoiser, schedule: Schedule, clip: float, x: Tensor, now: int) -> Tensor:
    """Estimate the clean data in `x` at time `now`."""
    time = _times(x, now)
    x0 = x0_from_v(schedule, x, denoise(x, time), time)
    return x0.clamp(-clip, clip)


def _times(x: Tensor, now: int) -> Tensor:
    return torch.full((len(x),), now, device=x.device)


def _scaled_estimate(denoise: Denoiser, schedule: Schedule, clip: float, y: Tensor, now: int) -> Tensor:
    return _estimate(denoise, schedule, clip, y * _scale(schedule, now), now)


def _grid(schedule: Schedule, spacing: Spacing, steps: int) -> tuple[list[int], list[float]]:
    """Return times, and the differences of half log-SNR from each to the next."""
    times = spacing(schedule, steps)
    return times, schedule.half_log_snr[times].diff().tolist()


def _deviation(schedule: Schedule, now: int) -> float:
    """Standard deviation of the noise in `y` at a time."""
    return math.exp(-schedule.half_log_snr[now].item())


def _scale(schedule: Schedule, now: int) -> float:
    """Return `x_t / y` at a time."""
    return 1 / math.hypot(1, _deviation(schedule, now))
