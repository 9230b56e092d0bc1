"""Skip steps whose loss or gradient is not finite.

Each skipped step is logged, and too many in a row end the training.

The decision is made on the device, without waiting for it. `spoil_if_not_finite` makes a bad loss of one process a bad
gradient of all of them, and `skip_if_not_finite` makes AdamW skip the step. The host learns of it when losses are read.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diffcast.training.losslog import StepLosses
from utils.errors import InputError
from utils.files import replacing, writable_folder

LOG = logging.getLogger(__name__)
# In a row, under loss scaling: each halves the scale, which starts at 2**16, and a gradient that still overflows after
# these is not finite at any scale.
MOST_OVERFLOWS = 50


def spoil_if_not_finite(loss: Tensor) -> Tensor:
    """Multiply a loss by 1, or by NaN if it is not finite.

    The gradient of such a loss is then NaN even where it would be finite.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


def skip_if_not_finite(optimizer: Optimizer, norm: Tensor) -> None:
    """Skip the next step of a fused AdamW if needed.

    If the norm is not finite, the step changes neither weights nor state.

    PyTorch's GradScaler sets the same attribute of fused optimisers.
    """
    optimizer.found_inf = norm.isfinite().logical_not().float()


class Buffers:
    """Running statistics of a model, such as those of BatchNorm.

    A bad batch changes them in the forward pass already.
    """

    def __init__(self, model: nn.Module):
        stored = model.state_dict(keep_vars=True).values()
        self.current = [b for b in stored if not isinstance(b, nn.Parameter) and b.is_floating_point()]
        self.good = [buffer.clone() for buffer in self.current]

    @torch.no_grad()
    def restore_if_not_finite(self, norm: Tensor) -> None:
        """Undo the changes of a step whose gradient norm is not finite."""
        for good, current in zip(self.good, self.current, strict=True):
            current.copy_(torch.where(norm.isfinite(), current, good))
            good.copy_(current)


@dataclass(frozen=True)
class BadBatch:
    """A batch of a skipped step that may be the cause."""

    process: int
    number: int  # of the process's batches, from 0
    loss: str
    sequences: list[str]  # their ids


@dataclass(frozen=True)
class BadStep:
    """A step that was skipped."""

    step: int
    not_finite: str  # "loss" or "gradient norm"
    gradient_norm: str
    batches: list[BadBatch]  # those whose loss is not finite, or all of the step if there is none


class Guard:
    """Count of the skipped steps among the losses that were read.

    It is the same on all processes.
    """

    def __init__(
        self,
        sequences_of,  # (batch number, process) -> ids of its sequences
        scaled: bool,  # under fp16's loss scaling, gradients overflow now and then by design
    ):
        self.sequences_of = sequences_of
        self.scaled = scaled
        self.skipped = 0  # since the start of the training
        self.in_a_row: int = 0  # up to the latest step
        self.overflows = 0  # gradients in a row that were not finite although the losses were
        self.latest: list[BadStep] = []  # those of them that this process has seen

    def read(self, steps: list[StepLosses]) -> None:
        """Take note of steps, the earliest first."""
        for step in steps:
            if not self._is_bad(step):
                self.in_a_row, self.latest = 0, []
                continue
            self.skipped += 1
            self.in_a_row += 1
            bad = self._describe(step)
            self.latest.append(bad)
            LOG.warning(
                "step %d: skipped, its %s is not finite; sequences %s",
                bad.step,
                bad.not_finite,
                ", ".join(sequence for batch in bad.batches for sequence in batch.sequences),
            )

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps of it."""
        return {"skipped": self.skipped, "bad_in_a_row": self.in_a_row, "overflows": self.overflows}

    def load_state(self, state: dict[str, int]) -> None:
        """Go on from the `state` of a checkpoint."""
        self.skipped, self.in_a_row, self.overflows = state["skipped"], state["bad_in_a_row"], state["overflows"]

    def _is_bad(self, step: StepLosses) -> bool:
        if not all(math.isfinite(loss) for losses in step.batches for loss in losses):
            return True
        self.overflows = 0 if math.isfinite(step.norm) else self.overflows + 1
        return self.overflows > (MOST_OVERFLOWS if self.scaled else 0)

    def _describe(self, step: StepLosses) -> BadStep:
        batches = list(self._batches(step))
        guilty = [batch for batch in batches if not math.isfinite(float(batch.loss))]
        return BadStep(step.step, "loss" if guilty else "gradient norm", str(step.norm), guilty or batches)

    def _batches(self, step: StepLosses) -> Iterator[BadBatch]:
        for process, losses in enumerate(step.batches):
            first = (step.step - 1) * len(losses)
            for number, loss in enumerate(losses, start=first):
                yield BadBatch(process, number, str(loss), self.sequences_of(number, process))


def write_diagnosis(folder: Path, guard: Guard, seed: int, write_checkpoint: Callable[[Path, int], None]) -> str:
    """Write a report of the last bad steps to `folder / "diagnosis"`.

    A checkpoint next to the report repeats these steps.

    The guard of that checkpoint has not seen them. Returns a sentence for the user about them.
    """
    path = folder / "diagnosis"
    first = guard.latest[-1].step - guard.in_a_row
    try:
        shutil.rmtree(path, ignore_errors=True)
        writable_folder(path, "the diagnosis")
        report = {
            "seed": seed,
            "skipped_steps": guard.skipped,
            "in_a_row": guard.in_a_row,
            "repeat_with": f"--resume {path / f'ckpt-{first}'}",
            "steps": [asdict(step) for step in guard.latest],
        }
        with replacing(path / "diagnosis.json") as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")
        guard.in_a_row, guard.skipped = 0, guard.skipped - guard.in_a_row
        write_checkpoint(path, first)
    except InputError as error:
        return f"there is no diagnosis: {error}"
    return f"{path} lists their sequences and repeats them."
