"""The Winograd convolution against `nn.Conv2d`."""

import pytest
import torch
from torch import nn

from models.winograd import WinogradConv


def example(height, width, dtype=torch.float64):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 4, 3, padding=1).to(dtype)
    maps = torch.randn(2, 5, height, width, dtype=dtype, requires_grad=True)
    return conv, maps


def convolve(conv, maps):
    """In two operands."""
    winograd = WinogradConv(conv, *maps.shape[-2:])
    return winograd(winograd.split(maps[:, :3]), winograd.split(maps[:, 3:]))


@pytest.mark.parametrize("size", [(8, 8), (6, 11), (1, 3)])
def test_values_are_those_of_a_direct_convolution(size):
    conv, maps = example(*size)
    torch.testing.assert_close(convolve(conv, maps), conv(maps))


def test_missing_channels_are_zeros():
    conv, maps = example(6, 8)
    winograd = WinogradConv(conv, 6, 8)
    few = maps[:, :3]
    padded = torch.cat([few, torch.zeros_like(maps[:, 3:])], dim=1)
    ours, expected = winograd(winograd.split(few)), conv(padded)
    torch.testing.assert_close(ours, expected)
    variables = (maps, conv.weight, conv.bias)
    expected_gradients = torch.autograd.grad(expected.sin().sum(), variables)
    torch.testing.assert_close(torch.autograd.grad(ours.sin().sum(), variables), expected_gradients)


def test_float32_rounds_no_more_than_a_direct_convolution_may():
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 32, 3, padding=1)
    maps = torch.randn(2, 64, 16, 16)
    winograd = WinogradConv(conv, 16, 16)
    exact = conv.double()(maps.double())
    error = winograd(winograd.split(maps)) - exact
    assert error.norm() < 2e-6 * exact.norm()


@pytest.mark.parametrize("pending", [1, 16, 1000])  # a product has 8 rows
def test_gradients_are_those_of_a_direct_convolution_used_at_every_step(monkeypatch, pending):
    monkeypatch.setattr("models.winograd.PENDING", pending)
    conv, maps = example(7, 8)
    winograd = WinogradConv(conv, 7, 8)

    def rollout(step):
        return sum(step(maps * scale).sin().sum() for scale in (1, 2, 3))

    variables = (maps, conv.weight, conv.bias)
    expected = torch.autograd.grad(rollout(conv), variables)
    ours = rollout(lambda x: winograd(winograd.split(x)))
    for _ in range(2):  # nothing is left over from the first pass, or from one that needs no gradient of the weight
        torch.testing.assert_close(torch.autograd.grad(ours, variables, retain_graph=True), expected)
        torch.testing.assert_close(torch.autograd.grad(ours, maps, retain_graph=True), expected[:1])
