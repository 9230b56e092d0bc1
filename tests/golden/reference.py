"""Stored results of the official code, and the weights they were made with."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.golden.fill import fill_state_dict, randn

FOLDER = Path(__file__).parent


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


@cache
def shapes(name: str) -> dict[str, list[int]]:
    """Official parameter names and their shapes."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def official_weights(shapes: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in fill_state_dict(shapes, seed).items()}


def segment_noise(batch: int, seed: int) -> Tensor:
    """Noise `(B, S, L, C, H, W)` of the four segments of the 32 x 32 cases."""
    segments = [torch.from_numpy(randn(f"noise/seg{s}", (batch, 5, 1, 32, 32), seed)) for s in range(4)]
    return torch.stack(segments, dim=1)


def assert_close(ours: Tensor, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=0, atol=atol)
