"""The training loop, for any forecaster."""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset
from tqdm import tqdm

from diffcast.forecaster import place
from diffcast.loading import (
    EvaluationBatches,
    TrainingBatches,
    generators,
    make_loader,
    spread,
    sum_over_processes,
)
from diffcast.losses import LossFile, Reading
from utils import checkpoint
from utils.errors import InputError

LOG = logging.getLogger(__name__)
EMA_INTERVAL = 20  # steps between updates of the averaged weights
EMA_COPY = 100  # first steps, during which the averaged weights are the current ones
READ_INTERVAL = 10  # steps between readings of the losses; each one waits for the device
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults are the paper's."""

    seed: int = 0
    lr: float = 1e-4
    betas: tuple[float, float] = (0.90, 0.95)  # of AdamW
    weight_decay: float = 0.0
    ema_rate: float = 0.95  # per EMA_INTERVAL steps
    scheduler: str = "cosine"  # or linear, constant; all after the warm-up
    warmup_steps: int = 1000
    grad_acc_step: int = 1  # batches per step
    batch_size: int = 6  # sequences per process and batch
    epochs: int = 20  # the longer of epochs and
    training_steps: int = 200_000  # steps counts
    early_stop: int = 10  # validations without improvement; 0: never
    valid_every: int = 2000  # steps between validations, each of which writes a checkpoint
    valid_sequences: int = 256  # evenly spread over the validation split
    num_workers: int = 4
    keep_checkpoints: int = 3


def train(
    accelerator: Accelerator,
    model: nn.Module,
    train_set: Dataset,
    valid_set: Dataset,
    settings: TrainingSettings,
    folder: Path,  # of the run: checkpoints/ and losses.csv appear there
    metadata: dict,  # goes into every checkpoint
    resume: Path | None = None,  # a checkpoint folder to go on from
) -> None:
    """Train a forecaster and leave its checkpoints in `folder`; sequences are `(T, C, H, W)` frames in [0, 1]."""
    trainer = Trainer(accelerator, model, train_set, valid_set, settings, folder, metadata)
    if resume is not None:
        trainer.restore(resume)
    trainer.run()


def steps_per_epoch(sequences: int, settings: TrainingSettings, processes: int) -> int:
    """Optimiser steps in an epoch; raises `InputError` if the sequences do not fill a single one."""
    per_step = settings.batch_size * processes * settings.grad_acc_step
    if sequences < per_step:
        raise InputError(
            f"the training split has {sequences} sequences, fewer than the {per_step} of one step "
            f"(--batch_size {settings.batch_size} x {processes} processes x --grad_acc_step {settings.grad_acc_step})."
        )
    return sequences // per_step


def total_steps(sequences: int, settings: TrainingSettings, processes: int) -> int:
    """The longer of `training_steps` and `epochs`, in optimiser steps."""
    return max(settings.training_steps, settings.epochs * steps_per_epoch(sequences, settings, processes))


def lr_factor(step: int, scheduler: str, warmup: int, total: int) -> float:
    """Share of the full learning rate: linear warm-up, then constant, or linear or half-cosine to 0 at the end."""
    if step < warmup:
        return step / warmup
    if scheduler == "constant":
        return 1.0
    remaining = max(0.0, (total - step) / max(1, total - warmup))
    return remaining if scheduler == "linear" else 0.5 * (1 - math.cos(math.pi * remaining))


def ema_decay(step: int, rate: float) -> float:
    """Share that the averaged weights keep at a step: none at first, then growing to `rate` as in the official tool."""
    since = step - EMA_COPY - 1
    return 0.0 if since <= 0 else min(rate, 1 - (1 + since) ** (-2 / 3))


class Trainer:
    """State of a training: what changes from step to step, what of it goes into a checkpoint, and how it is logged."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        train_set: Dataset,
        valid_set: Dataset,
        settings: TrainingSettings,
        folder: Path,
        metadata: dict,
    ):
        self.accelerator = accelerator
        self.settings = settings
        self.train_set = train_set
        self.valid_set = valid_set
        self.metadata = metadata
        self.checkpoints = folder / "checkpoints"
        self.losses = LossFile(folder / "losses.csv") if accelerator.is_main_process else None
        self.total = total_steps(len(train_set), settings, accelerator.num_processes)
        self.step = 0
        self.best = math.inf
        self.stale = 0  # validations since the best one

        place(model, accelerator.device)
        self.ema = AveragedModel(model, multi_avg_fn=self._average)
        self.ema.n_averaged.fill_(1)  # at 0 its next update would be a copy, also in a resumed run
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=accelerator.device.type == "cuda",
        )
        self.scheduler = LambdaLR(
            optimizer, lambda step: lr_factor(step, settings.scheduler, settings.warmup_steps, self.total)
        )
        self.frames_in = model.frames_in
        self.terms = model.loss_terms
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def run(self) -> None:
        """Train to the last step or until validation stops improving."""
        settings, accelerator = self.settings, self.accelerator
        if self.losses is not None:
            self.losses.truncate(self.step)
        if self._is_stale():
            return
        batches = TrainingBatches(
            len(self.train_set),
            settings.batch_size,
            settings.seed,
            self.step * settings.grad_acc_step,
            self.total * settings.grad_acc_step,
            accelerator.process_index,
            accelerator.num_processes,
        )
        loader = make_loader(self.train_set, batches, settings.num_workers, accelerator.device)
        bar = tqdm(
            total=self.total,
            initial=self.step,
            desc="training",
            unit="step",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
        )
        reading = Reading(self.terms, settings.grad_acc_step)
        self.model.train()
        with bar:
            for number, (_, frames) in enumerate(loader, start=batches.start):
                reading.add_batch(self._accumulate(number, frames.to(accelerator.device, non_blocking=True)))
                if not accelerator.sync_gradients:
                    continue
                rate = self.scheduler.get_last_lr()[0]
                reading.add_step(self._update(), rate)
                self.step += 1
                bar.update()
                due = self.step % settings.valid_every == 0 or self.step == self.total
                if due or self.step % READ_INTERVAL == 0:
                    self._read(reading, bar)
                if due:
                    self._validate()
                    if self._is_stale():
                        break

    def _accumulate(self, number: int, frames: Tensor) -> dict[str, Tensor]:
        """Forward and backward of one batch; gradients add up until a step is complete."""
        b = len(frames)
        first = (number * self.accelerator.num_processes + self.accelerator.process_index) * b
        draws = generators(self.accelerator.device, self.settings.seed, 1, range(first, first + b))
        # Dropout and its like draw from the global generator: tied to the batch, so that a resumed run repeats them.
        torch.manual_seed(draws[0].initial_seed())
        observed, future = frames.tensor_split([self.frames_in], dim=1)
        with self.accelerator.accumulate(self.model):
            terms = self.model(observed, future, draws)
            self.accelerator.backward(terms["loss"])
        return terms

    def _update(self) -> Tensor:
        """One optimiser step; returns the norm of the gradient before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        if self.step <= EMA_COPY or self.step % EMA_INTERVAL == 0:
            self.ema.update_parameters(self.accelerator.unwrap_model(self.model))
        return norm

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], _) -> None:
        torch._foreach_lerp_(averaged, current, 1 - ema_decay(self.step, self.settings.ema_rate))

    def _read(self, reading: "Reading", bar: tqdm) -> None:
        """Bring the losses since the last reading to the host: bar, file and trackers."""
        rows = reading.collect(self.accelerator, self.step)
        last = rows[-1]
        if self.losses is not None:
            self.losses.append(rows)
        self.accelerator.log(last, step=self.step)
        per_step = self.settings.batch_size * self.accelerator.num_processes * self.settings.grad_acc_step
        rate = bar.format_dict["rate"] or 0.0
        bar.set_postfix_str(
            ", ".join(f"{name} {last[name]:.4g}" for name in self.terms)
            + f", lr {last['lr']:.2g}, {rate * per_step:.1f} seq/s"
        )

    def _is_stale(self) -> bool:
        """Whether to stop early; a run that has once stopped so stays stopped when it is resumed."""
        stale = 0 < self.settings.early_stop <= self.stale
        if stale:
            LOG.info("step %d: no better validation in %d; stopping early", self.step, self.stale)
        return stale

    def _validate(self) -> None:
        """Validate the averaged weights and write a checkpoint."""
        started = time.monotonic()
        terms = validation_loss(self.accelerator, self.ema.module, self.valid_set, self.settings)
        self.model.train()
        if not math.isfinite(terms["loss"]):
            raise InputError(f"training diverged: the validation loss at step {self.step} is not finite; lower --lr.")
        improved = terms["loss"] < self.best
        self.best = min(self.best, terms["loss"])
        self.stale = 0 if improved else self.stale + 1
        self.accelerator.log({f"valid_{name}": value for name, value in terms.items()}, step=self.step)
        LOG.info(
            "step %d: validation %s%s (%.0f s)",
            self.step,
            ", ".join(f"{name} {value:.5f}" for name, value in terms.items()),
            ", the best so far" if improved else "",
            time.monotonic() - started,
        )
        if self.accelerator.is_main_process:
            self._save(terms["loss"], improved)
        self.accelerator.wait_for_everyone()

    def _save(self, valid_loss: float, improved: bool) -> None:
        weights = self.ema.module.state_dict()
        metadata = self.metadata | {"step": self.step, "valid_loss": valid_loss}
        scaler = self.accelerator.scaler
        training = {
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler and scaler.state_dict(),
        }
        if improved:
            checkpoint.save_weights(self.checkpoints / checkpoint.BEST, weights, metadata)
        checkpoint.save_checkpoint(self.checkpoints, self.step, weights, metadata, training)
        checkpoint.keep_latest(self.checkpoints, self.settings.keep_checkpoints)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint folder as if there had been no interruption."""
        state = checkpoint.load_pickle(path / checkpoint.TRAINING)
        weights, _ = checkpoint.load_weights(path / checkpoint.WEIGHTS)
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.ema.module.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.stale = state["step"], state["best"], state["stale"]
        if self.accelerator.is_main_process:
            checkpoint.drop_after(self.checkpoints, self.step)


@torch.no_grad()
def validation_loss(
    accelerator: Accelerator, model: nn.Module, valid_set: Dataset, settings: TrainingSettings
) -> dict[str, float]:
    """Mean loss terms over the validation sequences, each with the same noise every time and in any batch."""
    chosen = spread(len(valid_set), settings.valid_sequences)
    batches = EvaluationBatches(chosen, settings.batch_size, accelerator.process_index, accelerator.num_processes)
    sums = torch.zeros(len(model.loss_terms), dtype=torch.float64)
    model.eval()
    for indices, frames in make_loader(valid_set, batches, settings.num_workers, accelerator.device):
        draws = generators(accelerator.device, settings.seed, 2, indices)
        observed, future = frames.to(accelerator.device).tensor_split([model.frames_in], dim=1)
        with accelerator.autocast():
            terms = model(observed, future, draws)
        sums += torch.stack([terms[name] for name in model.loss_terms]).cpu().double() * len(frames)
    means = sum_over_processes(accelerator, sums) / len(chosen)
    return dict(zip(model.loss_terms, means.tolist(), strict=True))
