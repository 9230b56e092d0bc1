"""Sizes, the device and its peak, for all sections of `benchmarks.gpu`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed.measuring import default_device, in_turn
from diffcast import DiffCast
from diffcast.commandline.settings import parse_backbone_options
from diffcast.forecaster import Architecture
from tests.tiny import BACKBONES

Case = tuple[str, float, Callable[[], dict | list[dict]]]  # name, seconds that it may take, what makes its rows
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Sizes:
    """Sizes of all measurements; the defaults are the published sizes."""

    backbones: dict[str, list[str]] = field(default_factory=lambda: {"simvp": [], "phydnet": []})  # and their options
    img_size: int = 128
    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    batch: int = 6
    steps: int = 10  # between readings of a training's losses
    workers: int = 4
    members: int = 8
    sequences: int = 16  # of a large batch of forecasts
    sampling_steps: int = 10
    rounds: int = 3
    matrix: int = 8192


TOY = Sizes(
    {name: [f"{key}={value}" for key, value in BACKBONES[name].items()] for name in ("simvp", "phydnet")},
    img_size=16,
    dim=8,
    dim_mults=(1, 2),
    batch=2,
    steps=1,
    workers=0,
    members=2,
    sequences=2,
    sampling_steps=2,
    rounds=1,
    matrix=64,
)


class Bench:
    """Device, sizes, folder and time limit of a section."""

    def __init__(self, sizes: Sizes, folder: Path, until: float):
        self.sizes = sizes
        self.folder = folder  # for data, checkpoints and other files
        self.until = until  # Unix time after which nothing new is started
        self.device = default_device()
        self.flops: dict[str, int] = {}  # of a training step, by backbone

    def peak(self, dtype: torch.dtype) -> float:
        """TFLOP/s of a large matrix product."""
        a, b = torch.randn(2, self.sizes.matrix, self.sizes.matrix, device=self.device, dtype=dtype)
        return 2 * self.sizes.matrix**3 / in_turn({"": lambda: a @ b}, 10)[""]["median"] / 1e12

    def model(self, backbone: str) -> DiffCast:
        """A forecaster with random weights, as it is built."""
        torch.manual_seed(0)
        sizes, options = self.sizes, parse_backbone_options(self.sizes.backbones[backbone])
        shape = (1, sizes.img_size, sizes.img_size)
        architecture = Architecture(
            backbone, True, shape, backbone_options=options, dim=sizes.dim, dim_mults=sizes.dim_mults
        )
        return architecture.build().to(self.device).eval()

    def frames(self, sequences: int) -> Tensor:
        """Observed frames `(B, 5, 1, H, W)`."""
        return torch.rand(sequences, 5, 1, self.sizes.img_size, self.sizes.img_size, device=self.device)


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Switch TF32 on or off in this context."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
