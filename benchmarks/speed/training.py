"""Sequences per second of a training, and its share of waiting for data.

    python -m benchmarks.speed.training --backbone simvp --use_diff [--img_size 128] [--dim 64] [--batch_size 6]
        [--num_workers 4] [--steps 12] [--rounds 2] [--json result.json]

The data are packed synthetic storms. Forms: float32 contiguous (the reference), float32 and bfloat16 with weights in
the layout of a training (channels-last convolutions), and bfloat16 with gradients accumulated over batches. All have
the same weights and are timed in turn, each turn with new workers. A step is that of a training: draw noise, forward,
backward, clip, fused AdamW. The first step of a turn starts workers and warms up, and is not counted. Take more steps
than the workers read ahead (4 batches each), so that waiting shows.
"""

import argparse
import copy
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.speed.measuring import arguments, check_at_least, default_device, table, write_numbers
from dataset import build_dataset
from dataset.sevir.packed import pack
from dataset.synthetic.writer import write_sevir
from diffcast.commandline.settings import parse_backbone_options
from diffcast.forecaster import Architecture, place
from diffcast.loading import TrainingBatches, generators, load_batches
from diffcast.training.loop import MAX_GRADIENT_NORM
from utils.errors import InputError, exit_on_input_error

EVENTS = 30  # of which 21, with 5 sequences each, are for training


@dataclass(frozen=True)
class Form:
    """How to train."""

    name: str
    placed: bool  # weights in the layout of a training, or as they are built
    precision: torch.dtype
    batches: int  # per step


class Step(NamedTuple):
    """Seconds of one optimiser step."""

    waited: float  # for data
    total: float


class Training:
    """A model in training under one form."""

    def __init__(self, model: nn.Module, form: Form, device: torch.device):
        self.model = (place if form.placed else nn.Module.to)(copy.deepcopy(model), device).train()
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.form = form
        self.device = device

    def turn(self, dataset: Dataset, batch_size: int, workers: int, steps: int) -> list[Step]:
        """Time steps, after a first step, with their own loader."""
        batches = TrainingBatches(dataset, batch_size, 0, 0, (1 + steps) * self.form.batches)
        loader = load_batches(dataset, batches, workers, self.device)
        return [self.step(loader) for _ in range(1 + steps)][1:]

    def step(self, loader: Iterator[tuple[Tensor, Tensor]]) -> Step:
        """One optimiser step."""
        waited, started = 0.0, time.perf_counter()
        for _ in range(self.form.batches):
            asked = time.perf_counter()
            indices, frames = next(loader)
            waited += time.perf_counter() - asked
            self.accumulate(indices, frames)
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return Step(waited, time.perf_counter() - started)

    def accumulate(self, indices: Tensor, frames: Tensor) -> None:
        """Forward and backward of one batch."""
        observed, future = frames.tensor_split([self.model.frames_in], dim=1)
        draws = generators(self.device, 0, 1, indices.tolist())
        low = self.form.precision != torch.float32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            loss = self.model(observed, future, draws)["loss"]
        (loss / self.form.batches).backward()


def packed_storms(folder: Path, img_size: int, seq_len: int) -> Dataset:
    """The training split of a packed set of synthetic storms."""
    write_sevir(folder, EVENTS, img_size, img_size)
    pack("sevir", folder, img_size)
    return build_dataset("sevir", "train", folder, img_size, seq_len)


def measure(
    model: nn.Module, dataset: Dataset, batch_size: int, workers: int, accumulated: int, steps: int, rounds: int
) -> list[dict]:
    """Measure each form, in turn."""
    device = default_device()
    forms = [
        Form("float32, contiguous", False, torch.float32, 1),
        Form("float32", True, torch.float32, 1),
        Form("bfloat16", True, torch.bfloat16, 1),
        Form(f"bfloat16, {accumulated} batches per step", True, torch.bfloat16, accumulated),
    ]
    trainings = [Training(model, form, device) for form in forms]
    taken: list[list[Step]] = [[] for _ in forms]
    for _ in range(rounds):
        for training, so_far in zip(trainings, taken, strict=True):
            so_far += training.turn(dataset, batch_size, workers, steps)
    rows = [describe(form, batch_size, its) for form, its in zip(forms, taken, strict=True)]
    for row in rows:
        row["times faster"] = row["sequences/s"] / rows[0]["sequences/s"]
    return rows


def describe(form: Form, batch_size: int, steps: list[Step]) -> dict:
    """Summarise all steps of a form."""
    per_step, seconds = batch_size * form.batches, [step.total for step in steps]
    return {
        "form": form.name,
        "sequences/s": per_step / statistics.median(seconds),
        "best sequences/s": per_step / min(seconds),
        "s/step": statistics.median(seconds),
        "waits for data": sum(step.waited for step in steps) / sum(seconds),
    }


def build_parser() -> argparse.ArgumentParser:
    """Define the command line."""
    parser = arguments(__doc__)
    number = partial(parser.add_argument, type=int)
    parser.add_argument("--backbone", default="simvp", help="as in run.py")
    parser.add_argument("--backbone_options", nargs="*", default=[], metavar="NAME=VALUE", help="as in run.py")
    parser.add_argument("--use_diff", action="store_true", help="DiffCast around the backbone")
    number("--dim", default=64, help="width of the diffusion networks")
    number("--dim_mults", nargs="+", default=[1, 2, 4, 8], metavar="N", help="their widths per level")
    number("--img_size", default=128, help="pixels of a frame's side")
    number("--batch_size", default=6, help="sequences per batch")
    number("--grad_acc_step", default=4, help="batches per step of the last form")
    number("--num_workers", default=4, help="processes that load data")
    number("--steps", default=12, help="timed steps per turn")
    number("--rounds", default=2, help="turns of each form")
    return parser


def run(args: argparse.Namespace) -> None:
    """Generate data, measure, print the table, write the numbers."""
    check_at_least(args, 1, "batch_size", "grad_acc_step", "steps", "rounds")
    check_at_least(args, 0, "num_workers")
    architecture = Architecture(
        args.backbone,
        args.use_diff,
        (1, args.img_size, args.img_size),
        backbone_options=parse_backbone_options(args.backbone_options),
        dim=args.dim,
        dim_mults=tuple(args.dim_mults),
    )
    torch.manual_seed(0)
    model = architecture.build()
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"--backbone {args.backbone} has no weights to train; add --use_diff.")
    with tempfile.TemporaryDirectory() as folder:
        dataset = packed_storms(Path(folder), args.img_size, architecture.frames_in + architecture.frames_out)
        if args.batch_size > len(dataset):
            raise InputError(f"--batch_size {args.batch_size} exceeds the {len(dataset)} sequences of this benchmark.")
        rows = measure(model, dataset, args.batch_size, args.num_workers, args.grad_acc_step, args.steps, args.rounds)
    threads, what = torch.get_num_threads(), ("DiffCast with " if args.use_diff else "") + args.backbone
    print(
        f"Training of {what}, batches of {args.batch_size} x 25 frames of {args.img_size} x {args.img_size}, "
        f"{args.num_workers} workers, {threads} thread(s)"
    )
    print(table(rows))
    write_numbers(args, rows=rows)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the numbers."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    with exit_on_input_error():
        run(args)


if __name__ == "__main__":
    main()
