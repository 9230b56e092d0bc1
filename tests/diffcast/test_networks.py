"""GlobalMotion and LocalResidual against their official forms."""

import pytest
import torch

from diffcast import motion, residual
from diffcast.layers import LargeKernelAttention
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
