"""The noise schedule and the diffusion process against the official ones."""

import pytest
import torch

from diffcast.process import Schedule, diffuse, noise_from_x0, v_target, weighted_loss, x0_from_v
from tests.golden.reference import arrays, assert_close


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(array) for name, array in arrays("v_loss").items()}


def test_the_schedule_is_the_official_one_bit_for_bit():
    expected = arrays("schedule")
    for name, values in Schedule(1000).named_buffers():
        assert values.numpy().tobytes() == expected[name].tobytes(), name


def test_the_schedule_is_not_part_of_the_weights():
    assert not Schedule(10).state_dict()


def test_any_number_of_timesteps_leads_from_data_to_noise():
    for timesteps in (1, 7, 50):
        signal = torch.cat([torch.ones(1), Schedule(timesteps).alphas_cumprod])
        assert len(signal) == timesteps + 1
        assert (signal.diff() < 0).all()
        assert signal[-1] < 2e-3


def test_half_log_snr_is_that_of_the_schedule():
    schedule = Schedule(1000)
    ratio = schedule.sqrt_alphas_cumprod.double() / schedule.sqrt_one_minus_alphas_cumprod.double()
    torch.testing.assert_close(schedule.half_log_snr, ratio.log(), atol=1e-6, rtol=0)


def test_forward_process_and_target_are_the_official_ones(golden):
    given = Schedule(1000), golden["x0"], golden["noise"], golden["t"]
    assert_close(diffuse(*given), golden["x_t"], 5e-6)
    assert_close(v_target(*given), golden["v_target"], 5e-6)


def test_conversions_are_the_official_ones(golden):
    schedule, x_t, t = Schedule(1000), golden["x_t"], golden["t"]
    x0 = x0_from_v(schedule, x_t, golden["model_out"], t)
    assert_close(x0, golden["x0_from_model"], 5e-6)
    assert_close(noise_from_x0(schedule, x_t, x0.clamp(-1, 1), t), golden["eps_from_clipped_x0"], 5e-6)


def test_weighted_loss_is_the_official_one(golden):
    everywhere = torch.ones_like(golden["v_target"], dtype=torch.bool)
    loss = weighted_loss(Schedule(1000), golden["model_out"], golden["v_target"], golden["t"], everywhere)
    assert_close(loss, golden["weighted_loss"], 5e-6)


def test_a_uniform_loss_is_the_mean_squared_error():
    predicted, target, time = torch.randn(4, 2, 1, 3, 3), torch.randn(4, 2, 1, 3, 3), torch.tensor([0, 400, 800, 999])
    loss = weighted_loss(Schedule(1000), predicted, target, time, torch.ones_like(target, dtype=bool), "uniform")
    assert_close(loss, (predicted - target).square().mean(), 1e-6)


def test_weighted_loss_leaves_out_what_is_not_known(golden):
    known = torch.rand(golden["v_target"].shape, generator=torch.Generator().manual_seed(0)) < 0.7
    known[0] = False
    predicted, target, time = (golden[name] for name in ("model_out", "v_target", "t"))
    expected = sum(
        Schedule(1000).alphas_cumprod[t] * (p - v)[k].square().mean()
        for p, v, t, k in zip(predicted[1:], target[1:], time[1:], known[1:], strict=True)
    ) / len(time)
    assert_close(weighted_loss(Schedule(1000), predicted, target, time, known), expected, 1e-6)
    garbage = torch.where(known, target, torch.nan)
    assert_close(weighted_loss(Schedule(1000), predicted, garbage, time, known), expected, 1e-6)
