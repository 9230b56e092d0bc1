"""The validation loss of a training."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from dataset.sequences import Sequences
from diffcast.loading import EvaluationBatches, generators, load_batches, spread
from diffcast.processes import agreed, sum_over_processes
from diffcast.training.settings import TrainingSettings
from utils.errors import InputError
from utils.preemption import shield_worker
from utils.weights import load_weights

LOG = logging.getLogger(__name__)


def best_on_disk(path: Path, best: float, step: int) -> float:
    """Return the validation loss of the best weights on the disk.

    This is `best` if a later step has replaced them, and infinity if they cannot be read.
    """
    try:
        _, metadata = load_weights(path)
    except InputError as error:
        LOG.warning("the best weights so far are lost; the present ones are validated in their place: %s", error)
        return math.inf
    return metadata["valid_loss"] if metadata["step"] <= step else best


def validation_loss(
    accelerator: Accelerator,
    model: nn.Module,
    valid_set: Sequences,
    settings: TrainingSettings,
    stop: Callable[[], bool],  # asked before each batch whether to give up
) -> dict[str, float] | None:
    """Return the mean loss terms of the validation sequences.

    Each sequence has the same noise at every validation and in any batch.

    A warning names the sequences whose loss is not finite, and the means leave them out. The means are NaN if no
    sequence is left. Returns None on all processes if one of them gave up.
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
    """Average the finite loss terms. Also return the other sequences' indices."""
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
