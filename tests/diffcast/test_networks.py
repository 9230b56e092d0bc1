"""GlobalMotion and LocalResidual against their official forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.forecast import direct_attention
from diffcast import motion, residual
from diffcast.forecaster import place
from diffcast.layers import Downsample, GroupNorm, LargeKernelAttention, RMSNorm, Upsample
from diffcast.motion import GlobalMotion
from diffcast.residual import LocalResidual
from tests.golden.reference import arrays, assert_close, official_weights, shapes
from utils.official import prefixed, rename


def filled(network, rules, prefix, seed):
    """Give a network of width 16 the weights that the golden values were made with."""
    part = {name: shape for name, shape in shapes("keys_diffcast_phydnet_dim16").items() if name.startswith(prefix)}
    network.load_state_dict(rename(official_weights(part, seed), prefixed(rules, prefix, "")))
    return network


@pytest.fixture(scope="module")
def local_residual():
    return filled(LocalResidual(dim=16), residual.OFFICIAL_NAMES, "model.", seed=104)


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(array) for name, array in arrays("unet_32").items()}


def test_the_published_sizes_have_the_official_number_of_parameters():
    with torch.device("meta"):
        networks = LocalResidual(), GlobalMotion()
    assert [sum(p.numel() for p in n.parameters()) for n in networks] == [39_593_349, 6_676_544]


@torch.no_grad()
def test_contexts_are_the_official_ones():
    network = filled(GlobalMotion(dim=16), motion.OFFICIAL_NAMES, "ctx_net.", seed=103)
    golden = arrays("contextnet_32")
    frames = torch.from_numpy(golden["frames"])
    local, last = network(frames, local_at=5)
    first, _ = network(frames, local_at=0)
    for kind, maps in {"local": local, "global": last, "first": first}.items():
        for level, ours in enumerate(maps):
            assert_close(ours, golden[f"{kind}_{level}"], 2e-5)


@torch.no_grad()
@pytest.mark.parametrize("time", [17, 803])
@pytest.mark.parametrize("segment", [0, 2])
def test_a_denoised_segment_is_the_official_one(local_residual, golden, time, segment):
    context = [golden[f"ctx_{level}"][:1] for level in range(4)]
    ours = local_residual(golden["x"][:1], torch.tensor([time]), golden["cond"][:1], context, torch.tensor([segment]))
    assert_close(ours, golden[f"out_t{time}_idx{segment}"], 1e-4)


@torch.no_grad()
def test_each_sample_of_a_batch_has_its_own_time_and_segment(local_residual, golden):
    context = [golden[f"ctx_{level}"] for level in range(4)]
    ours = local_residual(golden["x"], torch.tensor([17, 803]), golden["cond"], context, torch.tensor([2, 0]))
    assert_close(ours, golden["out_mixed"], 1e-4)


@torch.no_grad()
def test_zeros_are_the_condition_of_a_first_segment(local_residual, golden):
    x, context = golden["x"][:1], [golden[f"ctx_{level}"][:1] for level in range(4)]
    ours = local_residual(x, torch.tensor([17]), torch.zeros_like(x), context, torch.tensor([0]))
    assert_close(ours, golden["out_nocond_t17_idx0"], 1e-4)


@torch.no_grad()
def test_any_number_of_levels_channels_and_frames_is_possible():
    torch.manual_seed(0)
    context, _ = GlobalMotion(channels=2, dim=8, dim_mults=(1, 2, 2))(torch.rand(1, 7, 2, 16, 24), local_at=3)
    network = LocalResidual(channels=2, segment_length=3, dim=8, dim_mults=(1, 2, 2))
    noisy, zero = torch.randn(1, 3, 2, 16, 24), torch.tensor([0])
    assert network(noisy, zero, noisy, context, zero).shape == noisy.shape


@torch.no_grad()
def test_members_share_what_they_are_conditioned_on(local_residual, golden):
    context = [golden[f"ctx_{level}"] for level in range(4)]
    noisy, condition, time = *torch.randn(2, 6, 5, 1, 32, 32), torch.arange(6) * 150
    segment = torch.tensor([2, 0])
    repeated = [x.repeat_interleave(3, dim=0) for x in context]
    expected = local_residual(noisy, time, condition, repeated, segment.repeat_interleave(3))
    ours = local_residual.conditioned(condition, context, segment)(noisy, time)
    assert_close(ours, expected.numpy(), 1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_what_does_not_depend_on_the_noise_is_computed_once(local_residual, golden):
    x, context, zero = golden["x"][:1], [golden[f"ctx_{level}"][:1] for level in range(4)], torch.tensor([0])
    denoise = local_residual.conditioned(x, context, zero)
    with FlopCounterMode(display=False) as whole:
        local_residual(x, zero, x, context, zero)
    with FlopCounterMode(display=False) as again:
        denoise(x, zero)
    # half of the stem, and of the first 3x3 convolution and 1x1 shortcut of each level
    saved = 16 * 5 * 7 * 7 * 32**2 + sum(c.shape[1] ** 2 * 10 * c.shape[2] ** 2 for c in context)
    assert whole.get_total_flops() - again.get_total_flops() >= 2 * saved


@torch.no_grad()
def test_half_precision_needs_no_other_type_or_layout_on_the_way(local_residual, golden):
    context = [golden[f"ctx_{level}"].to(memory_format=torch.channels_last) for level in range(4)]
    inputs = golden["x"], torch.tensor([17, 803]), golden["cond"], context, torch.tensor([2, 0])
    network = filled(place(LocalResidual(dim=16), torch.device("cpu")), residual.OFFICIAL_NAMES, "model.", seed=104)
    types, layouts = set(), set()

    def record(_, given, y):
        types.update(x.dtype for x in (*given, y))
        layouts.add(y.is_contiguous(memory_format=torch.channels_last))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm | RMSNorm):
            module.register_forward_hook(record)
    with torch.autocast("cpu", torch.bfloat16):
        ours = network(*inputs)
    expected = local_residual(*inputs)
    assert types == {torch.bfloat16}
    assert layouts == {True}
    assert ours.dtype == torch.float32
    assert (ours - expected).norm() < 3e-2 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("channels", [16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_is_that_of_the_library(channels, dtype):
    x = torch.randn(2, channels, 5, 4).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    norm = GroupNorm(8, channels)
    expected = F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double())
    for found in (norm(x), torch.no_grad()(norm)(x)):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, atol=1e-6 if dtype == torch.float32 else 4e-2, rtol=0)


def test_resampling_is_what_it_stands_for():
    torch.manual_seed(0)
    x, up, down = torch.randn(2, 6, 10, 14), Upsample(6, 3), Downsample(6, 3)
    torch.testing.assert_close(up(x), up.conv(F.interpolate(x, scale_factor=2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(down(x), down.conv(F.pixel_unshuffle(x, 2)), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(2, 4), (9, 12), (16, 23)])
def test_dilated_convolutions_are_those_of_the_library(size):
    torch.manual_seed(0)
    attention, x = LargeKernelAttention(8), torch.randn(2, 8, *size)
    torch.testing.assert_close(attention(x), direct_attention(attention, x), atol=1e-5, rtol=0)


def test_half_precision_gradients_of_dilated_convolutions_are_right():
    """On processors those of the library's own convolution are wrong at random, so this repeats."""
    torch.manual_seed(0)
    attention = LargeKernelAttention(16).to(memory_format=torch.channels_last)
    frames = torch.randn(16, 16, 64, 64).to(memory_format=torch.channels_last)
    gradients = []
    for precise in [True] + 8 * [False]:
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            attention(frames).float().square().mean().backward()
        gradients.append(attention.dilated.weight.grad.clone())
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() < 0.05 * gradients[0].norm()
