"""The training loop on a GPU: speed, waiting times and repeatability."""

import itertools
import math
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import run
from benchmarks.gpu.bench import Bench, Case, Sizes
from dataset import build_dataset
from dataset.sevir.packed import pack
from dataset.synthetic.writer import write_sevir
from diffcast.commandline.settings import RunSettings, read
from diffcast.commandline.summary import training_cost
from diffcast.training.loop import Trainer

THREE_STEPS = [  # a checkpoint after two of them
    *("--warmup_steps", "0", "--scheduler", "constant", "--epochs", "0", "--training_steps", "3"),
    *("--valid_every", "2", "--max_bad_steps", "10"),
]
EVENTS = 30  # of which 21, with 5 sequences each, are for training
SECONDS = 12  # of one training, once it has read its losses twice


def training(bench: Bench, precision: str) -> Iterator[Case]:
    """Steps of both forecasters, with and without gradient checkpointing."""
    for more in ((), ("--gradient_checkpointing",)):
        for backbone in bench.sizes.backbones:
            words = [backbone, "--mixed_precision", precision, *more]
            yield " ".join([backbone, *more]), SECONDS, partial(trained, bench, *words)


def compiled(bench: Bench) -> Iterator[Case]:
    """Steps with torch.compile, whose first ones take long."""
    for backbone in bench.sizes.backbones:
        yield backbone, 40, partial(trained, bench, backbone, "--mixed_precision", "bf16", "--compile")


class Timed(Trainer):
    """A training that ends after some readings of its losses and measures waiting times.

    Each reading waits until the device has finished, so that the time between readings is that of the steps between
    them.
    """

    readings: list[tuple[float, float, float]]  # time, seconds of waiting for data, and for the device
    rounds: int  # intervals between readings to time, after the first
    until: float  # Unix time after which the training ends at the next reading

    def run(self) -> bool:
        self.readings, self.data, self.device = [], 0.0, 0.0
        self.left = self.started = time.perf_counter()
        return super().run()

    def row(self) -> dict:
        """The numbers."""
        steps = self.step // len(self.readings)
        ends = [end for end, *_ in self.readings]
        (first, *before), (last, *after) = self.readings[0], self.readings[-1]
        per_step = statistics.median(b - a for a, b in itertools.pairwise(ends)) / steps
        data, device = ((b - a) / (last - first) for a, b in zip(before, after, strict=True))
        return {
            "s to first reading": first - self.started,
            "steps/s": 1 / per_step,
            "sequences/s": self.settings.batch_size * self.accelerator.num_processes / per_step,
            "waits for data": data,
            "waits for device": device,
            "launching": 1 - data - device,
        }

    def _accumulate(self, number: int, frames: Tensor) -> dict[str, Tensor]:
        self.data += time.perf_counter() - self.left
        terms = super()._accumulate(number, frames)
        self.left = time.perf_counter()
        return terms

    def _update(self) -> Tensor:
        norm = super()._update()
        self.left = time.perf_counter()
        return norm

    def _read(self, *given) -> None:
        started = time.perf_counter()
        super()._read(*given)
        self.left = time.perf_counter()
        self.device += self.left - started
        self.readings.append((self.left, self.data, self.device))

    def _is_stale(self) -> bool:
        late = len(self.readings) > 1 and time.time() > self.until
        return late or len(self.readings) > self.rounds


def words(sizes: Sizes, backbone: str, *more: str) -> list[str]:
    """Arguments of `run.py` for a training."""
    return [
        *("--use_diff", "--backbone", backbone, "--backbone_options", *sizes.backbones[backbone]),
        *("--img_size", str(sizes.img_size), "--dim", str(sizes.dim), "--dim_mults", *map(str, sizes.dim_mults)),
        *("--batch_size", str(sizes.batch), "--num_workers", str(sizes.workers)),
        *("--max_bad_steps", str(sizes.steps), "--training_steps", "1000000", "--valid_every", "1000000"),
        *more,
    ]


def prepared(given: list[str]) -> tuple[RunSettings, nn.Module, Accelerator]:
    """Settings, model and accelerator as `run.py` makes them."""
    settings = read(vars(run.build_parser().parse_args(given)))
    torch.manual_seed(settings.training.seed)
    model = settings.architecture.build(**settings.training.of_the_loss())
    accelerator = run.make_accelerator(settings)
    return settings.computing_in(accelerator.mixed_precision), model, accelerator


def storms(accelerator: Accelerator, folder: Path, img_size: int):
    """The training split of packed storms, which the first process writes."""
    data = folder / f"storms_{img_size}"
    with accelerator.main_process_first():
        if not data.exists():
            partial = data.with_suffix(".partial")
            write_sevir(partial, EVENTS, img_size, img_size)
            pack("sevir", partial, img_size)
            partial.rename(data)
    return build_dataset("sevir", "train", data, img_size, 25)


def trained(bench: Bench, backbone: str, *more: str) -> dict:
    """Speed of a training, and its share of the peak."""
    settings, model, accelerator = prepared(words(bench.sizes, backbone, *more))
    data = storms(accelerator, bench.folder, bench.sizes.img_size)
    run_folder = bench.folder / f"run_{time.monotonic_ns()}"
    if accelerator.is_main_process:
        (run_folder / "checkpoints").mkdir(parents=True)
    if backbone not in bench.flops:
        bench.flops[backbone] = training_cost(settings.architecture.build())[0] * bench.sizes.batch
    training = Timed(accelerator, model, data, data, settings.training, run_folder, {})
    training.rounds = bench.sizes.rounds
    training.until = math.inf if accelerator.num_processes > 1 else time.time() + SECONDS
    training.run()
    row = training.row()
    rate = bench.flops[backbone] * row["steps/s"] / 1e12
    peak = bench.peak(torch.bfloat16 if settings.training.mixed_precision == "bf16" else torch.float32)
    return row | {"TFLOP/step": bench.flops[backbone] / 1e12, "TFLOP/s": rate, "of peak": rate / peak}


class Unvalidated(Trainer):
    """A training that saves a checkpoint instead of validating, except at its end."""

    def _validate(self) -> bool:
        self.pending = False
        if self.step < self.total:
            self._save(None)
        return True


def repeated(bench: Bench, deterministic: bool) -> dict:
    """Compare three steps with a repetition, and with a resumption after the second."""
    torch.backends.cudnn.deterministic = deterministic
    folder = bench.folder / f"repeated_{deterministic}"
    weights, losses = zip(*(three_steps(bench, folder / kind) for kind in ("first", "again")), strict=True)
    resumed = three_steps(bench, folder / "resumed", folder / "first" / "checkpoints" / "ckpt-2")
    torch.backends.cudnn.deterministic = False
    found = {"again": (weights[1], losses[1]), "resumed": resumed}
    return {
        name: value
        for kind, (its_weights, its_losses) in found.items()
        for name, value in {
            f"{kind}, weights": (its_weights - weights[0]).abs().max().item(),
            f"{kind}, loss": "equal" if its_losses == losses[0] else "differs",
        }.items()
    }


def three_steps(bench: Bench, folder: Path, resume: Path | None = None) -> tuple[Tensor, str]:
    """Weights after the third step of a training, and the last line of its losses."""
    settings, model, accelerator = prepared(words(bench.sizes, "simvp", *THREE_STEPS))
    data = storms(accelerator, bench.folder, bench.sizes.img_size)
    (folder / "checkpoints").mkdir(parents=True)
    trainer = Unvalidated(accelerator, model, data, data, settings.training, folder, {})
    if resume is not None:
        trainer.restore(resume)
    trainer.run()
    accelerator.free_memory()
    losses = (folder / "losses.csv").read_text().splitlines()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), losses[-1]
