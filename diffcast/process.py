"""The diffusion process: noise schedule, forward process, prediction targets and loss weights.

Notation: `A_t` is the cumulative signal power of step `t`, and `x_t = sqrt(A_t) x0 + sqrt(1 - A_t) eps`
(Ho et al. 2020, arXiv 2006.11239). The network predicts `v = sqrt(A_t) eps - sqrt(1 - A_t) x0`
(Salimans and Ho 2022, arXiv 2202.00512). Times are integers in `0 .. timesteps - 1`; tensors have any shape
`(B, ...)`, times `(B,)`.
"""

from functools import cached_property

import torch
from torch import Tensor, nn

LOSS_WEIGHTS = ("signal", "uniform")


class Schedule(nn.Module):
    """Sigmoid noise schedule from -3 to 3 (Jabri et al. 2022, arXiv 2212.11972).

    Its values are float32 buffers `(timesteps,)`, which are not saved. It is a module so that the buffers move to a
    device with the model.
    """

    def __init__(self, timesteps: int = 1000):
        super().__init__()
        self.timesteps = timesteps
        betas = sigmoid_betas(timesteps)
        signal = torch.cumprod(1 - betas, dim=0)
        for name, value in {
            "betas": betas,
            "alphas_cumprod": signal,
            "sqrt_alphas_cumprod": signal.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - signal).sqrt(),
            "sqrt_recip_alphas_cumprod": (1 / signal).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / signal - 1).sqrt(),
        }.items():
            self.register_buffer(name, value.float().to(torch.get_default_device()), persistent=False)

    @cached_property
    def half_log_snr(self) -> Tensor:
        """Half log-SNR, `log(sqrt(A_t) / sqrt(1 - A_t))`, falling, float64 `(timesteps,)`.

        The tensor stays on the host, where samplers compute their coefficients without waiting for a device.
        """
        return torch.cumprod(1 - sigmoid_betas(self.timesteps), dim=0).logit() / 2


def sigmoid_betas(timesteps: int) -> Tensor:
    """Noise added per step, float64 `(timesteps,)` on the host."""
    position = torch.linspace(-3, 3, timesteps + 1, dtype=torch.float64, device="cpu")
    # The end points are float32 in the official schedule. They nearly cancel against the last steps' sigmoids, so that
    # exact ones would move the last betas by up to 6.5e-6.
    first, last = (torch.tensor(end, dtype=torch.float32, device="cpu").sigmoid().double() for end in (-3.0, 3.0))
    signal = (last - position.sigmoid()) / (last - first)
    signal = signal / signal[0]
    return (1 - signal[1:] / signal[:-1]).clamp(0, 0.999)


def diffuse(schedule: Schedule, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Return `x_t` of clean data and standard normal noise."""
    return _at(schedule.sqrt_alphas_cumprod, time, x0) * x0 + (
        _at(schedule.sqrt_one_minus_alphas_cumprod, time, x0) * noise
    )


def v_target(schedule: Schedule, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Return `v`, which the network should predict."""
    return _at(schedule.sqrt_alphas_cumprod, time, x0) * noise - (
        _at(schedule.sqrt_one_minus_alphas_cumprod, time, x0) * x0
    )


def x0_from_v(schedule: Schedule, x_t: Tensor, v: Tensor, time: Tensor) -> Tensor:
    """Return the clean data that a prediction `v` at `x_t` implies."""
    return _at(schedule.sqrt_alphas_cumprod, time, x_t) * x_t - (
        _at(schedule.sqrt_one_minus_alphas_cumprod, time, x_t) * v
    )


def noise_from_x0(schedule: Schedule, x_t: Tensor, x0: Tensor, time: Tensor) -> Tensor:
    """Return the noise in `x_t`, given clean data `x0`."""
    return (_at(schedule.sqrt_recip_alphas_cumprod, time, x_t) * x_t - x0) / (
        _at(schedule.sqrt_recipm1_alphas_cumprod, time, x_t)
    )


def weighted_loss(
    schedule: Schedule,
    predicted: Tensor,
    target: Tensor,
    time: Tensor,
    valid: Tensor,  # bool, of the target's shape; values elsewhere are missing and have no weight
    weight: str = "signal",  # one of LOSS_WEIGHTS
) -> Tensor:
    """Mean squared error of `v` per sample, weighted and averaged over the batch.

    `signal` weights it by `A_t`, which is SNR / (SNR + 1), as in the official code. `uniform` gives full weight to
    noisy times, which determine the large scales.
    """
    squares = torch.where(valid, predicted - target, 0).square().flatten(1)
    error = squares.sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)
    return (schedule.alphas_cumprod[time] * error if weight == "signal" else error).mean()


def _at(values: Tensor, time: Tensor, like: Tensor) -> Tensor:
    return values[time].view(-1, *[1] * (like.dim() - 1))
