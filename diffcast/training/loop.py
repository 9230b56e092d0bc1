"""The training loop, for any forecaster.

SIGTERM, SIGINT and SIGUSR1 end a training after the step with a checkpoint. Several processes agree on that step when
they next read their losses, at most `READ_INTERVAL` steps later. A step that is not finite is skipped, see
`diffcast.training.guard`. After any other end, the latest checkpoint is intact, and a training that is resumed from it
equals the uninterrupted one to the bit.
"""

import logging
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from dataset.sequences import Sequences
from diffcast.forecaster import fill, place
from diffcast.loading import TrainingBatches, generators, load_batches, turned
from diffcast.model import DiffCast
from diffcast.processes import agreed
from diffcast.training.guard import Buffers, Guard, skip_if_not_finite, spoil_if_not_finite, write_diagnosis
from diffcast.training.losslog import LossFile, Reading
from diffcast.training.preview import preview
from diffcast.training.settings import EMA_COPY, EMA_INTERVAL, TrainingSettings, ema_decay, lr_factor, total_steps
from diffcast.training.validation import best_on_disk, validation_loss
from utils import checkpoint
from utils.errors import InputError
from utils.files import Dispensable
from utils.pickles import load_pickle
from utils.preemption import Preemption, shield_worker
from utils.weights import load_weights, save_weights

LOG = logging.getLogger(__name__)
READ_INTERVAL = 10  # steps between readings of the losses, each of which waits for the device
MAX_GRADIENT_NORM = 1.0


def train(
    accelerator: Accelerator,
    model: nn.Module,
    train_set: Sequences,
    valid_set: Sequences,
    settings: TrainingSettings,
    folder: Path,  # of the run: checkpoints/ and losses.csv appear there
    metadata: dict,  # goes into every checkpoint
    resume: Path | None = None,  # a checkpoint folder to resume from
) -> bool:
    """Train a forecaster and write its checkpoints to `folder`.

    Returns whether the training has come to its end. False means that a signal interrupted it, after a checkpoint.
    """
    trainer = Trainer(accelerator, model, train_set, valid_set, settings, folder, metadata)
    if resume is not None:
        trainer.restore(resume)
    return trainer.run()


class Trainer:
    """State of a training, with its logs and checkpoints."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        train_set: Sequences,
        valid_set: Sequences,
        settings: TrainingSettings,
        folder: Path,
        metadata: dict,
    ):
        self.accelerator = accelerator
        self.settings = settings
        self.train_set = train_set
        self.valid_set = valid_set
        self.metadata = metadata
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.losses = LossFile(folder / "losses.csv") if accelerator.is_main_process else None
        self.tracking = Dispensable("what the trackers keep")
        self.total = total_steps(len(train_set), settings, accelerator.num_processes)
        self.step = 0
        self.best = math.inf
        self.stale = 0  # validations since the best one
        self.saved: int | None = None  # step of the latest checkpoint in the run's folder
        self.pending = False  # whether the validation that is due at this step is still to come
        self.guard = Guard(self._sequences_of, scaled=accelerator.scaler is not None)
        self.preemption = Preemption()

        place(model, accelerator.device)
        self.ema = AveragedModel(model, multi_avg_fn=self._average)
        self.ema.n_averaged.fill_(1)  # at 0 its next update would be a copy, also in a resumed run
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=settings.lr,
            betas=(settings.lr_beta1, settings.lr_beta2),
            weight_decay=settings.l2_norm,
            fused=True,  # which can skip a step without a word to the host
        )
        self.frames_in = model.frames_in
        self.terms = model.loss_terms
        if settings.compile:  # after the averaged copy, which stays as it is
            for part in (model.backbone, model.motion, model.residual) if isinstance(model, DiffCast) else (model,):
                part.compile()
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.buffers = Buffers(model)

    def run(self) -> bool:
        """Train to the last step or until validation stops improving.

        Returns False if a signal interrupts the training.
        """
        if self.losses is not None:
            self.losses.truncate(self.step)
            checkpoint.drop_leftovers(self.checkpoints)
        with self.preemption:
            if self.pending and not self._validate():
                return False
            return self._is_stale() or self._train()

    def _train(self) -> bool:
        batches = self._batches(self.step * self.settings.grad_acc_step, self.total * self.settings.grad_acc_step)
        loaded = load_batches(
            self.train_set, batches, self.settings.num_workers, self.accelerator.device, shield_worker
        )
        bar = tqdm(
            total=self.total,
            initial=self.step,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_main_process,
            dynamic_ncols=True,
        )
        reading = Reading(self.terms, self.settings.grad_acc_step)
        self.model.train()
        with bar:
            for number, (_, frames) in enumerate(loaded, start=batches.start):
                reading.add_batch(self._accumulate(number, frames))
                if not self.accelerator.sync_gradients:
                    continue
                rate = self._set_rate()
                reading.add_step(self._update(), rate)
                self.step += 1
                self.pending = self.step % self.settings.valid_every == 0 or self.step == self.total
                bar.update()
                if not self._is_reading_due():
                    continue
                self._read(reading, bar)
                if self._is_interrupted():
                    return False
                if self.pending and not self._validate():
                    return False
                if self._is_stale():
                    break
        return not self._is_interrupted()

    def _batches(self, start: int, stop: int, process: int | None = None) -> TrainingBatches:
        accelerator = self.accelerator
        return TrainingBatches(
            self.train_set,
            self.settings.batch_size,
            self.settings.seed,
            start,
            stop,
            accelerator.process_index if process is None else process,
            accelerator.num_processes,
        )

    def _sequences_of(self, number: int, process: int) -> list[str]:
        (indices,) = self._batches(number, number + 1, process)
        return [self.train_set.sequence_id(index) for index in indices]

    def _set_rate(self) -> float:
        factor = lr_factor(self.step, self.settings.scheduler, self.settings.warmup_steps, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * factor
        return self.settings.lr * factor

    def _is_reading_due(self) -> bool:
        """Whether to read the losses after this step.

        Reading waits for the device. The answer is the same on all processes.
        """
        alone = self.accelerator.num_processes == 1
        interval = min(READ_INTERVAL, self.settings.max_bad_steps)
        return self.pending or self.step % interval == 0 or (alone and self.preemption.received is not None)

    def _is_interrupted(self) -> bool:
        """Whether a signal has reached any of the processes.

        If so, this writes the checkpoint to resume from.
        """
        received = self.preemption.received
        interrupted = agreed(self.accelerator, received is not None)
        if interrupted:
            self._save(None)
            LOG.info("step %d: stopping after %s; --resume continues from here", self.step, received or "a signal")
        return interrupted

    def _accumulate(self, number: int, frames: Tensor) -> dict[str, Tensor]:
        """Add the gradient of one batch to that of the step."""
        b = len(frames)
        first = (number * self.accelerator.num_processes + self.accelerator.process_index) * b
        draws = generators(self.accelerator.device, self.settings.seed, 1, range(first, first + b))
        # Dropout and its like draw from the global generator: tied to the batch, so that a resumed run repeats them.
        torch.manual_seed(draws[0].initial_seed())
        if self.settings.augment:
            frames = turned(frames, generators(frames.device, self.settings.seed, 7, range(first, first + b)))
        observed, future = frames.tensor_split([self.frames_in], dim=1)
        with self.accelerator.accumulate(self.model):
            terms = self.model(observed, future, draws)
            self.accelerator.backward(spoil_if_not_finite(terms["loss"]))
        return terms

    def _update(self) -> Tensor:
        """Take one optimiser step, and return the norm of the gradient before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        if self.accelerator.scaler is None:  # which does the same itself
            skip_if_not_finite(self.optimizer.optimizer, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.buffers.restore_if_not_finite(norm)
        if self.step <= EMA_COPY or self.step % EMA_INTERVAL == 0:
            self.ema.update_parameters(self.accelerator.unwrap_model(self.model))
        return norm

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], _) -> None:
        torch._foreach_lerp_(averaged, current, 1 - ema_decay(self.step, self.settings.ema_rate))

    def _read(self, reading: Reading, bar: tqdm) -> None:
        """Log the losses since the last reading, and count skipped steps."""
        steps = reading.collect(self.accelerator, self.step)
        last = steps[-1]
        if self.losses is not None:
            self.losses.append([step.row() for step in steps])
        self._track(last.row())
        per_step = self.settings.batch_size * self.accelerator.num_processes * self.settings.grad_acc_step
        rate = bar.format_dict["rate"] or 0.0
        bar.set_postfix_str(
            ", ".join(f"{name} {last.terms[name]:.4g}" for name in self.terms)
            + f", lr {last.rate:.2g}, {rate * per_step:.1f} seq/s"
        )
        self.guard.read(steps)
        if self.guard.in_a_row >= self.settings.max_bad_steps:
            self._diagnose()

    def _track(self, values: dict[str, float]) -> None:
        with self.tracking:
            self.accelerator.log(values, step=self.step)

    def _show_preview(self) -> None:
        """Send scores and a picture of validation forecasts to the trackers."""
        if not (self.accelerator.trackers and self.accelerator.is_main_process):
            return
        try:
            scores, picture = preview(self.ema.module, self.valid_set, self.accelerator.device, self.settings.seed)
        except (InputError, RuntimeError, MemoryError) as error:  # a training does not depend on it
            LOG.warning("step %d: no preview for the trackers: %s", self.step, error)
            return
        self._track({f"valid_{name}": value for name, value in scores.items()})
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            with self.tracking:
                tracker.log_images({"valid_forecast": picture[None]}, step=self.step, **layout)

    def _is_stale(self) -> bool:
        """Whether to stop early.

        A run that has stopped early stays stopped when it is resumed.
        """
        stale = 0 < self.settings.early_stop <= self.stale
        if stale:
            LOG.info("step %d: no better validation in %d; stopping early", self.step, self.stale)
        return stale

    def _validate(self) -> bool:
        """Validate the averaged weights and write a checkpoint.

        Returns False if a signal came first. The checkpoint is written in that case, too.
        """
        started = time.monotonic()
        terms = validation_loss(
            self.accelerator,
            self.ema.module,
            self.valid_set,
            self.settings,
            lambda: self.preemption.received is not None,
        )
        self.model.train()
        if terms is None:
            return not self._is_interrupted()
        if not math.isfinite(terms["loss"]):
            self._save(None)
            raise InputError(
                f"no sequence has a finite validation loss at step {self.step}, whose checkpoint is kept: check the "
                "validation data, or train anew with a lower --lr under another --exp_note."
            )
        improved = terms["loss"] < self.best
        self.best = min(self.best, terms["loss"])
        self.stale = 0 if improved else self.stale + 1
        self.pending = False
        self._track({f"valid_{name}": value for name, value in terms.items()} | {"skipped_steps": self.guard.skipped})
        LOG.info(
            "step %d: validation %s%s (%.0f s)",
            self.step,
            ", ".join(f"{name} {value:.5f}" for name, value in terms.items()),
            ", the best so far" if improved else "",
            time.monotonic() - started,
        )
        self._save(terms["loss"], improved)
        self._show_preview()
        return True

    def _save(self, valid_loss: float | None, improved: bool = False) -> None:
        """Write a checkpoint, and the best weights if they improved.

        The main process writes while the others wait.
        """
        error = None
        if self.accelerator.is_main_process:
            try:
                if improved:
                    metadata = self.metadata | {"step": self.step, "valid_loss": valid_loss}
                    save_weights(self.checkpoints / checkpoint.BEST, self.ema.module.state_dict(), metadata)
                # A run that was interrupted in this step's validation has its checkpoint already.
                if self.saved != self.step:
                    self._write(self.checkpoints, self.step, valid_loss)
                    checkpoint.drop_after(self.checkpoints, self.step)
                checkpoint.keep_latest(self.checkpoints, self.settings.keep_checkpoints)
            except InputError as caught:
                error = caught
        self.saved = self.step
        if agreed(self.accelerator, error is not None):
            raise error or InputError("the main process could not write the checkpoint; see its message.")

    def _write(self, folder: Path, step: int, valid_loss: float | None = None) -> None:
        scaler = self.accelerator.scaler
        training = {
            "step": step,
            "best": self.best,
            "stale": self.stale,
            "pending": self.pending,
            **self.guard.state(),
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler and scaler.state_dict(),
        }
        metadata = self.metadata | {"step": step, "valid_loss": valid_loss}
        checkpoint.save_checkpoint(folder, step, self.ema.module.state_dict(), metadata, training)

    def _diagnose(self) -> None:
        """End a training whose last steps have all been skipped.

        The weights have not changed since the first of these steps.
        """
        number, advice = self.guard.in_a_row, "the main process names their sequences."
        if self.accelerator.is_main_process:
            advice = write_diagnosis(self.folder, self.guard, self.settings.seed, self._write)
        raise InputError(
            f"training stopped at step {self.step}: the last {number} steps were skipped because their loss or "
            f"gradient was not finite; {advice}"
        )

    def restore(self, path: Path) -> None:
        """Restore the state that a checkpoint folder holds."""
        state = load_pickle(path / checkpoint.TRAINING)
        weights, _ = load_weights(path / checkpoint.WEIGHTS)
        fill(self.accelerator.unwrap_model(self.model), state["model"], path)
        fill(self.ema.module, weights, path)
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.stale = state["step"], state["best"], state["stale"]
        self.saved = self.step if path.resolve().parent == self.checkpoints.resolve() else None
        self.pending = state["pending"]
        self.guard.load_state(state)
        self.buffers = Buffers(self.accelerator.unwrap_model(self.model))
        if self.best < math.inf:
            self.best = best_on_disk(self.checkpoints / checkpoint.BEST, self.best, self.step)
            if self.best == math.inf:
                self.stale, self.pending = 0, True
