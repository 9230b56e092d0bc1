"""Samplers against the official time lists and against denoisers that are known in closed form."""

import itertools
import math

import pytest
import torch

from diffcast.process import Schedule
from diffcast.samplers import SAMPLERS, ddim, ddim_times
from tests.golden.reference import arrays


@pytest.mark.parametrize("steps", [250, 50, 10, 3])
def test_ddim_times_are_the_official_ones(steps):
    assert ddim_times(1000, steps) == arrays("schedule")[f"ddim_times_{steps}"].tolist()


def test_ddim_times_round_as_float32_does():
    assert ddim_times(1000, 26)[13] == 498  # 499 in exact arithmetic


def gaussian(schedule, mean, deviation):
    """`v` of the exact denoiser of data that is normal in every pixel."""

    def denoise(x, time):
        signal = schedule.alphas_cumprod[time].double()[:, None]
        a, b, x = signal.sqrt(), (1 - signal).sqrt(), x.double()
        x0 = mean + deviation**2 * a / (a**2 * deviation**2 + b**2) * (x - a * mean)
        return ((a * x - x0) / b).float()

    return denoise


def ddim_moments(schedule, mean, deviation, steps):
    """Mean and standard deviation of DDIM's samples, exact since each is an affine function of its start noise."""
    noise = torch.tensor([[0.0], [1.0]])
    at_zero, at_one = ddim(gaussian(schedule, mean, deviation), noise, schedule, steps).flatten().tolist()
    return at_zero, at_one - at_zero


def test_ddim_converges_to_a_gaussian_with_first_order():
    schedule = Schedule(20_000)  # nearly continuous
    means, deviations = zip(
        *(ddim_moments(schedule, 0.2, 0.25, steps) for steps in (25, 50, 100, 200, 400)), strict=True
    )
    assert means == pytest.approx([0.2] * 5, abs=2e-5)
    errors = [abs(deviation - 0.25) for deviation in deviations]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    # The error goes as log(n) / n, for the noise level starts like the square root of time: orders climb towards 1.
    assert orders == sorted(orders)
    assert 0.78 < orders[0] < orders[-1] < 1
    assert errors[-1] < 4e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_single_point_is_found_in_any_number_of_steps(sampler, steps):
    schedule, point, calls = Schedule(1000), torch.tensor([0.3, -0.9, 1.7]), []

    def denoise(x, time):
        calls.append(time)
        signal = schedule.alphas_cumprod[time][:, None]
        return (signal.sqrt() * x - point) / (1 - signal).sqrt()

    found = SAMPLERS[sampler](denoise, torch.randn(2, 3), schedule, steps)
    torch.testing.assert_close(found, point.clamp(-1, 1).expand(2, 3), atol=1e-5, rtol=0)
    assert len(calls) == steps
