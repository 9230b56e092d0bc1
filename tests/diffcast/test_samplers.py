"""Samplers against the official time lists and against denoisers that are known in closed form."""

import itertools
import math
from functools import partial

import pytest
import torch

from diffcast.process import Schedule
from diffcast.samplers import SAMPLERS, ddim, dpm_solver, uniform_in_log_snr, uniform_in_time
from tests.golden.reference import arrays

MEAN, DEVIATION = 0.2, 0.25


class TestSpacing:
    @pytest.mark.parametrize("steps", [250, 50, 10, 3])
    def test_uniform_times_are_the_official_ones(self, steps):
        assert [*uniform_in_time(Schedule(), steps), -1] == arrays("schedule")[f"ddim_times_{steps}"].tolist()

    def test_uniform_times_round_as_float32_does(self):
        assert uniform_in_time(Schedule(), 26)[13] == 498  # 499 in exact arithmetic

    @pytest.mark.parametrize("spacing", [uniform_in_time, uniform_in_log_snr])
    @pytest.mark.parametrize(("timesteps", "every"), [(1, 1), (2, 1), (30, 1), (1000, 37), (1000, 999)])
    def test_times_are_distinct_and_fall(self, spacing, timesteps, every):
        schedule = Schedule(timesteps)
        for steps in range(1, timesteps + 1, every):
            times = spacing(schedule, steps)
            assert len(times) == steps
            assert timesteps > times[0]
            assert all(now > then for now, then in itertools.pairwise([*times, -1]))

    @pytest.mark.parametrize("steps", [2, 6, 20])
    def test_log_snr_is_even_up_to_rounding_and_spares_the_clipped_step(self, steps):
        schedule = Schedule()
        times = uniform_in_log_snr(schedule, steps)
        assert (times[0], times[-1]) == (998, 0)
        levels = schedule.half_log_snr
        even = torch.linspace(levels[998], levels[0], steps, dtype=levels.dtype)
        assert (levels[times] - even).abs().max() < 0.18  # half of the widest gap between two of these times

    @pytest.mark.parametrize(("timesteps", "every"), [(2, 1), (50, 1), (1000, 37)])
    def test_log_snr_grid_falls_from_the_last_but_one_time_to_0(self, timesteps, every):
        for steps in range(2, timesteps + 1, every):
            times = uniform_in_log_snr(Schedule(timesteps), steps)
            assert (len(times), times[0], times[-1]) == (steps, max(timesteps - 2, steps - 1), 0)

    @pytest.mark.parametrize("spacing", [uniform_in_time, uniform_in_log_snr])
    @pytest.mark.parametrize("steps", [0, 51])
    def test_more_steps_than_the_schedule_has_are_refused(self, spacing, steps):
        with pytest.raises(ValueError, match=f"between 1 and 50, .* not {steps}"):
            spacing(Schedule(50), steps)


class Gaussian:
    """The exact denoiser of data that is normal in every pixel, and what its probability flow leads to."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x, time):
        a = self.schedule.sqrt_alphas_cumprod[time].double()[:, None]
        b = self.schedule.sqrt_one_minus_alphas_cumprod[time].double()[:, None]
        x0 = MEAN + DEVIATION**2 * a / (a**2 * DEVIATION**2 + b**2) * (x - a * MEAN)
        return ((a * x - x0) / b).to(x.dtype)

    def moments(self, times):
        """Mean and deviation of the data estimate at the end of the exact flow from normal noise at its start."""
        start, end = (math.exp(-self.schedule.half_log_snr[t]) for t in (times[0], times[-1]))
        left = DEVIATION**2 / math.hypot(DEVIATION, end) / math.hypot(DEVIATION, start)
        return MEAN * (1 - left), left * math.hypot(1, start)


def moments(sampler, schedule, steps):
    """Mean and deviation of samples, exact since a sample is an affine function of all noise that enters it."""
    noise = torch.zeros(steps + 1, 1, dtype=torch.float64)
    noise[1] = 1  # the first sample has no noise, each other one a unit in one place
    places = itertools.count(2)

    def draw(x):
        unit = torch.zeros_like(x)
        unit[next(places)] = 1
        return unit

    samples = sampler(Gaussian(schedule), noise, schedule, steps, clip=math.inf, draw=draw).flatten()
    return samples[0].item(), (samples[1:] - samples[0]).norm().item()


class TestConvergence:
    @pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpm_solver, 2)])
    def test_order_to_the_exact_flow(self, sampler, order):
        schedule, errors = Schedule(20_000), []  # nearly continuous
        for steps in (33, 65, 129):
            expected = Gaussian(schedule).moments(uniform_in_log_snr(schedule, steps))
            found = moments(partial(sampler, spacing=uniform_in_log_snr), schedule, steps)
            assert found == pytest.approx(expected, abs=0.03)
            errors.append(abs(found[1] - expected[1]))
        orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
        assert orders == pytest.approx([order] * 2, abs=0.12)

    @pytest.mark.parametrize(
        ("sampler", "steps", "error"),
        [("ddim", 250, 6e-3), ("dpm", 20, 3e-3), ("sde-dpm", 20, 6e-3)],
    )
    def test_few_steps_suffice_on_the_real_schedule(self, sampler, steps, error):
        assert moments(SAMPLERS[sampler], Schedule(), steps) == pytest.approx((MEAN, DEVIATION), abs=error)

    @pytest.mark.parametrize("sampler", [partial(ddim, eta=1.0, spacing=uniform_in_log_snr), SAMPLERS["sde-dpm"]])
    def test_added_noise_keeps_the_distribution(self, sampler):
        found = moments(sampler, Schedule(20_000), 300)
        assert found == pytest.approx((MEAN, DEVIATION), abs=5e-3)

    @pytest.mark.parametrize("sampler", SAMPLERS.values())
    def test_two_modes_are_found_in_their_proportion(self, sampler):
        schedule, modes, shares, width = Schedule(), torch.tensor([-0.5, 0.4]), torch.tensor([0.3, 0.7]), 0.1

        def denoise(x, time):
            a, b = schedule.sqrt_alphas_cumprod[time][:, None], schedule.sqrt_one_minus_alphas_cumprod[time][:, None]
            variance = (a * width) ** 2 + b**2
            log_odds = shares.log() - (x - a * modes) ** 2 / (2 * variance)
            centres = modes + width**2 * a / variance * (x - a * modes)
            return (a * x - (log_odds.softmax(1) * centres).sum(1, keepdim=True)) / b

        quantiles = (torch.arange(4000) + 0.5) / 4000
        noise = torch.distributions.Normal(0, 1).icdf(quantiles)[:, None]
        samples = sampler(denoise, noise, schedule, 50, draw=normal(torch.Generator().manual_seed(0))).flatten()
        upper = samples > 0
        assert upper.float().mean().item() == pytest.approx(0.7, abs=0.015)
        for mode, found in zip(modes, (samples[~upper], samples[upper]), strict=True):
            assert found.mean().item() == pytest.approx(mode.item(), abs=0.015)
            assert found.std().item() == pytest.approx(width, abs=0.025)


def normal(*generators):
    """Noise of its own for each sample, or one generator for all."""

    def draw(x):
        if len(generators) == 1:
            return torch.randn(x.shape, generator=generators[0])
        return torch.stack([torch.randn(x.shape[1:], generator=one) for one in generators])

    return draw


@pytest.mark.parametrize("sampler", SAMPLERS)
class TestEverySampler:
    @pytest.mark.parametrize("steps", [1, 2, 3, 8])
    @pytest.mark.parametrize("clip", [1.0, 0.5, math.inf])
    def test_a_single_point_is_found_in_any_number_of_steps(self, sampler, steps, clip):
        schedule, point, times = Schedule(), torch.tensor([0.3, -0.9, 1.7]), []

        def denoise(x, time):
            times.append(time.tolist())
            signal = schedule.alphas_cumprod[time][:, None]
            return (signal.sqrt() * x - point) / (1 - signal).sqrt()

        found = SAMPLERS[sampler](denoise, torch.randn(2, 3), schedule, steps, clip=clip)
        expected = point.clamp(-clip, clip)
        torch.testing.assert_close(found, expected.expand(2, 3), atol=1e-4, rtol=0)
        assert len(times) == steps
        assert all(first == second for first, second in times)

    def test_a_sample_does_not_depend_on_its_batch(self, sampler):
        schedule, noise = Schedule(), torch.randn(3, 1)

        def sample(*rows):
            draw = normal(*(torch.Generator().manual_seed(row) for row in rows))
            return SAMPLERS[sampler](Gaussian(schedule), noise[list(rows)], schedule, 6, draw=draw)

        together = sample(0, 1, 2)
        torch.testing.assert_close(together, sample(0, 1, 2), atol=0, rtol=0)
        torch.testing.assert_close(together[1:2], sample(1), atol=1e-6, rtol=0)

    def test_noise_is_drawn_between_evaluations_or_never(self, sampler):
        draws = []
        SAMPLERS[sampler](Gaussian(Schedule()), torch.randn(2, 1), Schedule(), 6, draw=lambda x: draws.append(x) or x)
        assert len(draws) == (5 if sampler == "sde-dpm" else 0)


class Scripted:
    """A denoiser whose estimates of the data are given in advance; it keeps what it was asked about."""

    def __init__(self, schedule, *estimates):
        self.signal = schedule.alphas_cumprod
        self.estimates = iter(estimates)
        self.seen = []

    def __call__(self, x, time):
        self.seen.append(x.item())
        a, b = self.signal[time].sqrt(), (1 - self.signal[time]).sqrt()
        return (a * x - next(self.estimates)) / b
