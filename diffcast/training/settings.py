"""Settings of a training, and what follows from them at each step."""

import math
from dataclasses import dataclass

from diffcast.process import LOSS_WEIGHTS
from utils.errors import InputError
from utils.options import check_values, option

EMA_INTERVAL = 20  # steps between updates of the averaged weights
EMA_COPY = 100  # first steps, during which the averaged weights are the current ones


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. Defaults are the paper's. Raises `InputError` for impossible values."""

    batch_size: int = option(6, "sequences per process and batch", at_least=1)
    grad_acc_step: int = option(1, "batches per optimiser step", at_least=1, rare=True)
    epochs: int = option(
        20, "minimum number of epochs. If only --training_steps is given, no epoch is required", at_least=0
    )
    training_steps: int = option(
        200_000, "minimum number of optimiser steps. Without --epochs it is the exact number", at_least=1
    )
    lr: float = option(1e-4, "learning rate of AdamW", at_least=0, below=math.inf)
    scheduler: str = option(
        "cosine", "schedule of the learning rate after the warm-up", choices=("constant", "linear", "cosine"), rare=True
    )
    warmup_steps: int = option(1000, "steps over which the learning rate rises from 0", at_least=0, rare=True)
    augment: bool = option(False, "flip each training sequence at random, and rotate it if frames are square")
    mixed_precision: str = option(
        "no",
        "precision of the forward pass in training. auto is bf16 on a device that computes in it natively, otherwise "
        "no",
        choices=("no", "fp16", "bf16", "auto"),
    )
    diffusion_weight: float = option(
        0.5, "weight of the diffusion loss in the total loss, alpha in the paper", rare=True
    )
    loss_weight: str = option(
        "signal",
        "weight of each diffusion time in the loss: its share of signal as in the official code, or uniform",
        choices=LOSS_WEIGHTS,
    )
    particles: int = option(
        2, "particles of each segment that --objective crps and hybrid compare", at_least=2, at_most=16, rare=True
    )
    crps_scales: tuple[int, ...] = option(
        (1, 2),
        "sides in pixels of the squares whose means the CRPS compares, for --objective crps and hybrid",
        at_least=1,
        rare=True,
    )
    crps_fairness: float = option(
        1.0,
        "estimator of the CRPS, from 1 (of infinitely many particles) to 0 (of the particles as they are), for "
        "--objective crps and hybrid",
        at_least=0,
        at_most=1,
        rare=True,
    )
    freeze_backbone: bool = option(False, "train only the diffusion networks of DiffCast")
    seed: int = option(0, "seed of weights, order of sequences and noise", at_least=0, at_most=2**63 - 1)
    early_stop: int = option(
        10,
        "stop after this number of validations without improvement. 0 disables early stopping",
        at_least=0,
        rare=True,
    )
    valid_every: int = option(
        2000, "steps between validations. Each validation writes a checkpoint", at_least=1, rare=True
    )
    valid_sequences: int = option(
        256, "sequences per validation, evenly spaced in the validation split", at_least=1, rare=True
    )
    keep_checkpoints: int = option(
        3, "number of latest checkpoints to keep in addition to the best", at_least=1, rare=True
    )
    max_bad_steps: int = option(
        10,
        "stop after this number of consecutive steps that were skipped because loss or gradient was not finite",
        at_least=1,
        rare=True,
    )
    ema_rate: float = option(
        0.95, f"decay of the averaged weights per {EMA_INTERVAL} steps", at_least=0, below=1, rare=True
    )
    lr_beta1: float = option(
        0.90, "decay rate of AdamW's first moment", flag="--lr-beta1", at_least=0, below=1, rare=True
    )
    lr_beta2: float = option(
        0.95, "decay rate of AdamW's second moment", flag="--lr-beta2", at_least=0, below=1, rare=True
    )
    l2_norm: float = option(0.0, "weight decay of AdamW", flag="--l2-norm", at_least=0, below=math.inf, rare=True)
    gradient_checkpointing: bool = option(
        False,
        "recompute the activations of DiffCast in the backward pass. Memory falls by about 40 %%, and a step takes a "
        "third longer",
        rare=True,
    )
    compile: bool = option(False, "compile the networks by torch.compile, for training and for forecasts", rare=True)
    num_workers: int = option(
        4,
        "processes that load data, per process of the run. At most one per processor is started",
        at_least=0,
        rare=True,
    )

    def __post_init__(self):
        check_values(self)

    def of_the_loss(self) -> dict:
        """Return the options of `DiffCast` that shape only its training."""
        names = ("diffusion_weight", "loss_weight", "freeze_backbone", "gradient_checkpointing")
        names += ("particles", "crps_scales", "crps_fairness")
        return {name: getattr(self, name) for name in names}


def steps_per_epoch(sequences: int, settings: TrainingSettings, processes: int) -> int:
    """Return the number of optimiser steps in an epoch.

    Raises `InputError` if the sequences do not fill a single step.
    """
    per_step = settings.batch_size * processes * settings.grad_acc_step
    if sequences < per_step:
        raise InputError(
            f"the training split has {sequences} sequences, fewer than the {per_step} of one step "
            f"(--batch_size {settings.batch_size} x {processes} processes x --grad_acc_step {settings.grad_acc_step})."
        )
    return sequences // per_step


def total_steps(sequences: int, settings: TrainingSettings, processes: int) -> int:
    """Return the longer of `training_steps` and `epochs` in optimiser steps."""
    return max(settings.training_steps, settings.epochs * steps_per_epoch(sequences, settings, processes))


def describe_length(steps: int, settings: TrainingSettings) -> str:
    """Describe the total number of steps and the option that decides it."""
    decisive = f"--epochs {settings.epochs}" if steps > settings.training_steps else "--training_steps"
    return f"{steps:,} steps, decided by {decisive}"


def lr_factor(step: int, scheduler: str, warmup: int, total: int) -> float:
    """Return the fraction of the full learning rate at a step.

    After a linear warm-up it is constant, or falls to 0 linearly or as half a cosine.
    """
    if step < warmup:
        return step / warmup
    if scheduler == "constant":
        return 1.0
    remaining = max(0.0, (total - step) / max(1, total - warmup))
    return remaining if scheduler == "linear" else 0.5 * (1 - math.cos(math.pi * remaining))


def ema_decay(step: int, rate: float) -> float:
    """Return the decay of the averaged weights at a step.

    It is 0 at first and then grows to `rate`, as in the official code.
    """
    since = step - EMA_COPY - 1
    return 0.0 if since <= 0 else min(rate, 1 - (1 + since) ** (-2 / 3))
