"""The losses of a training, from the device to a file."""

import contextlib
import csv
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor

from utils.files import Dispensable, replacing


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step on the host, the same on all processes."""

    step: int
    terms: dict[str, float]  # means over batches and processes
    batches: list[list[float]]  # the loss of each process's batches
    norm: float  # of the gradient
    rate: float  # of learning

    def row(self) -> dict[str, float]:
        """Return the row for the file and the trackers."""
        return {"step": self.step, **self.terms, "gradient_norm": self.norm, "lr": self.rate}


class Reading:
    """Losses of the steps since the last reading, on the device."""

    def __init__(self, names: tuple[str, ...], batches: int):
        self.names = names
        self.batches = batches  # per step and process
        self.terms: list[Tensor] = []  # of each batch
        self.norms: list[Tensor] = []  # of each step
        self.rates: list[float] = []  # learning rate of each step

    def add_batch(self, terms: dict[str, Tensor]) -> None:
        self.terms.append(torch.stack([terms[name].detach() for name in self.names]))

    def add_step(self, norm: Tensor, rate: float) -> None:
        self.norms.append(norm)
        self.rates.append(rate)

    def collect(self, accelerator: Accelerator, last_step: int) -> list[StepLosses]:
        """Return the steps in order, and forget them."""
        terms = rearrange(self.terms, "(step batch) term -> 1 step batch term", batch=self.batches)
        terms = rearrange(accelerator.gather(terms), "process step batch term -> step term process batch")
        means = terms.mean(dim=(2, 3)).tolist()
        losses = terms[:, self.names.index("loss")].tolist()
        norms = torch.stack(self.norms).tolist()
        first = last_step - len(norms) + 1
        steps = [
            StepLosses(step, dict(zip(self.names, mean, strict=True)), batches, norm, rate)
            for step, (mean, batches, norm, rate) in enumerate(
                zip(means, losses, norms, self.rates, strict=True), start=first
            )
        ]
        self.terms, self.norms, self.rates = [], [], []
        return steps


class LossFile:
    """The losses of every step as CSV, with all digits.

    No training ends for the sake of this file: what cannot be written is left out, after a warning.
    """

    def __init__(self, path: Path):
        self.path = path
        self.dispensable = Dispensable(str(path))

    def append(self, rows: list[dict[str, float]]) -> None:
        size = None
        with self.dispensable:
            try:
                with self.path.open("a", newline="") as file:
                    size = file.tell()
                    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                    if size == 0:
                        writer.writeheader()
                    writer.writerows(rows)
            except OSError:
                if size is not None:
                    with contextlib.suppress(OSError):
                        os.truncate(self.path, size)  # no half line, to which later ones would be appended
                raise

    def truncate(self, step: int) -> None:
        """Remove incomplete lines and the steps after `step`.

        A resumed run takes these steps again.
        """
        with self.dispensable:
            if not self.path.exists() or self.path.stat().st_size == 0:
                return
            lines = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= step]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(kept))
