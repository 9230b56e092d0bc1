"""The losses of a training, from the device to the bar, a file and the trackers."""

import csv
from pathlib import Path

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor

from utils.files import replacing


class Reading:
    """Losses of the steps since the last reading, kept on the device until they are collected."""

    def __init__(self, names: tuple[str, ...], batches: int):
        self.names = names
        self.batches = batches  # per step
        self.terms: list[Tensor] = []  # of each batch
        self.norms: list[Tensor] = []  # of each step
        self.rates: list[float] = []  # learning rate of each step

    def add_batch(self, terms: dict[str, Tensor]) -> None:
        self.terms.append(torch.stack([terms[name].detach() for name in self.names]))

    def add_step(self, norm: Tensor, rate: float) -> None:
        self.norms.append(norm)
        self.rates.append(rate)

    def collect(self, accelerator: Accelerator, last_step: int) -> list[dict[str, float]]:
        """A row per step, its losses averaged over batches and processes; then start anew."""
        terms = rearrange(self.terms, "(step batch) term -> step batch term", batch=self.batches).mean(dim=1)
        terms = accelerator.reduce(terms, "mean").tolist()
        norms = torch.stack(self.norms).tolist()
        steps = range(last_step - len(norms) + 1, last_step + 1)
        rows = [
            {"step": step, **dict(zip(self.names, values, strict=True)), "gradient_norm": norm, "lr": rate}
            for step, values, norm, rate in zip(steps, terms, norms, self.rates, strict=True)
        ]
        self.terms, self.norms, self.rates = [], [], []
        return rows


class LossFile:
    """The losses of every step as CSV; floats are written so that they read back exactly."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, rows: list[dict[str, float]]) -> None:
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)

    def truncate(self, step: int) -> None:
        """Forget the steps after `step`, which a resumed run takes again."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        header, *lines = self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= step]
        with replacing(self.path) as temporary:
            temporary.write_text("".join([header, *kept]))
