"""The validation loss, and what else the processes of a training agree on."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffcast.loading import EvaluationBatches, generators, load_batches, spread, sum_over_processes
from diffcast.training.settings import TrainingSettings
from utils.errors import InputError
from utils.files import locked
from utils.preemption import shield_worker
from utils.weights import load_weights

LOG = logging.getLogger(__name__)
T = TypeVar("T")


def agreed(accelerator: Accelerator, mine: bool) -> bool:
    """Whether it is so on any of the processes, all of which wait for the answer."""
    return bool(sum_over_processes(accelerator, torch.tensor(int(mine))))


def decided_by_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What `decide` returns in the main process, or its `InputError`, in all processes, which wait for it."""
    told: list = [None, None]
    if accelerator.is_main_process:
        try:
            told[0] = decide()
        except InputError as error:
            told[1] = str(error)
    found, error = broadcast_object_list(told)
    if error is not None:
        raise InputError(error)
    return found


@contextlib.contextmanager
def alone_in(folder: Path, accelerator: Accelerator, advice: str) -> Iterator[None]:
    """Keep other runs out of a folder; the main process holds the lock.

    Raises `InputError`, which ends with the advice, if another run has it.
    """
    with contextlib.ExitStack() as stack:
        decided_by_main(accelerator, lambda: stack.enter_context(locked(folder, advice)))
        yield


def best_on_disk(path: Path, best: float, step: int) -> float:
    """The validation loss of the best weights up to a step, `best` unless others took their place; inf if lost."""
    try:
        _, metadata = load_weights(path)
    except InputError as error:
        LOG.warning("the best weights so far are lost; the present ones are validated in their place: %s", error)
        return math.inf
    return metadata["valid_loss"] if metadata["step"] <= step else best


def validation_loss(
    accelerator: Accelerator,
    model: nn.Module,
    valid_set: Dataset,
    settings: TrainingSettings,
    stop: Callable[[], bool],  # asked before each batch whether to give up
) -> dict[str, float] | None:
    """Mean loss terms over the validation sequences, each with the same noise every time and in any batch.

    Sequences whose loss is not finite are left out, with a warning; if all are, so are the means (NaN). None, on all
    processes, if one of them gave up.
    """
    chosen = spread(len(valid_set), settings.valid_sequences)
    batches = EvaluationBatches(chosen, settings.batch_size, accelerator.process_index, accelerator.num_processes)
    loaded = load_batches(valid_set, batches, settings.num_workers, accelerator.device, shield_worker)
    sums = torch.zeros(len(model.loss_terms), dtype=torch.float64)
    bad: list[int] = []
    model.eval()
    stopped = False
    for indices, frames in loaded:
        if stopped := stop():
            break
        means, left_out = _finite_means(accelerator, model, indices, frames, settings.seed)
        sums += means * (len(frames) - len(left_out))
        bad += left_out
    if agreed(accelerator, stopped):
        return None
    if number := int(sum_over_processes(accelerator, torch.tensor(len(bad)))):
        names = ", ".join(valid_set.sequence_id(index) for index in sorted(gather_object(bad)))
        LOG.warning("%d sequence(s) have no finite validation loss and are left out of it: %s", number, names)
    count = len(chosen) - number
    means = sum_over_processes(accelerator, sums) / count
    return dict(zip(model.loss_terms, means.tolist(), strict=True))


@torch.no_grad()
def _finite_means(
    accelerator: Accelerator,
    model: nn.Module,
    indices: Tensor,
    frames: Tensor,
    seed: int,
) -> tuple[Tensor, list[int]]:
    """Mean terms of the sequences that have finite ones, and the indices of the others."""
    draws = generators(accelerator.device, seed, 2, indices)
    observed, future = frames.tensor_split([model.frames_in], dim=1)
    with accelerator.autocast():
        terms = model(observed, future, draws)
    means = torch.stack([terms[name] for name in model.loss_terms]).cpu().double()
    if means.isfinite().all():
        return means, []
    if len(frames) == 1:
        return torch.zeros_like(means), indices.tolist()
    each = [
        _finite_means(accelerator, model, *one, seed) for one in zip(indices.split(1), frames.split(1), strict=True)
    ]
    bad = [index for _, left_out in each for index in left_out]
    total = torch.stack([means for means, _ in each]).sum(0)
    return total / max(1, len(each) - len(bad)), bad
