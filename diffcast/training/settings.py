"""How to train, and what follows from it at each step: how many there are, learning rate, share of the average."""

import math
from dataclasses import dataclass

from utils.errors import InputError

EMA_INTERVAL = 20  # steps between updates of the averaged weights
EMA_COPY = 100  # first steps, during which the averaged weights are the current ones


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
    augment: bool = False  # flip and rotate sequences at random
    epochs: int = 20  # minimum number; see `total_steps`
    training_steps: int = 200_000  # minimum number
    early_stop: int = 10  # validations without improvement; 0: never
    valid_every: int = 2000  # steps between validations, each of which writes a checkpoint
    valid_sequences: int = 256  # evenly spread over the validation split
    num_workers: int = 4
    keep_checkpoints: int = 3
    max_bad_steps: int = 10  # skipped steps in a row that end the training
    compile: bool = False  # translate the networks by torch.compile: minutes at the start, faster steps


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


def describe_length(steps: int, settings: TrainingSettings) -> str:
    """The total number of steps, and which option decides it."""
    decisive = f"--epochs {settings.epochs}" if steps > settings.training_steps else "--training_steps"
    return f"{steps:,} steps, decided by {decisive}"


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
