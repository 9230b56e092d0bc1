"""The validation loss, and what else the processes of a training agree on."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from diffcast.loading import EvaluationBatches, generators, load_batches, spread, sum_over_processes
from diffcast.schedule import TrainingSettings
from utils.preemption import shield_worker


def agreed(accelerator: Accelerator, mine: bool) -> bool:
    """Whether it is so on any of the processes, all of which wait for the answer."""
    return bool(sum_over_processes(accelerator, torch.tensor(int(mine))))


@torch.no_grad()
def validation_loss(
    accelerator: Accelerator,
    model: nn.Module,
    valid_set: Dataset,
    settings: TrainingSettings,
    stop: Callable[[], bool],  # asked before each batch whether to give up
) -> dict[str, float] | None:
    """Mean loss terms over the validation sequences, each with the same noise every time and in any batch.

    None, on all processes, if one of them gave up.
    """
    chosen = spread(len(valid_set), settings.valid_sequences)
    batches = EvaluationBatches(chosen, settings.batch_size, accelerator.process_index, accelerator.num_processes)
    loaded = load_batches(valid_set, batches, settings.num_workers, accelerator.device, shield_worker)
    sums = torch.zeros(len(model.loss_terms), dtype=torch.float64)
    model.eval()
    stopped = False
    for indices, frames in loaded:
        if stopped := stop():
            break
        draws = generators(accelerator.device, settings.seed, 2, indices)
        observed, future = frames.tensor_split([model.frames_in], dim=1)
        with accelerator.autocast():
            terms = model(observed, future, draws)
        sums += torch.stack([terms[name] for name in model.loss_terms]).cpu().double() * len(frames)
    if agreed(accelerator, stopped):
        return None
    means = sum_over_processes(accelerator, sums) / len(chosen)
    return dict(zip(model.loss_terms, means.tolist(), strict=True))
