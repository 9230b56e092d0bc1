"""Measurement of the scale of residuals, before a training."""

import logging

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from dataset.sequences import Sequences
from diffcast.forecaster import place
from diffcast.loading import EvaluationBatches, load_batches
from diffcast.model import DiffCast
from diffcast.processes import sum_over_processes
from models import Backbone, build_backbone
from models.backbone import without_gaps
from utils.errors import InputError

LOG = logging.getLogger(__name__)
SEQUENCES = 256
DIGITS = 3  # significant ones of the result, which the order of sums does not reach


def measured_scale(
    accelerator: Accelerator,
    model: DiffCast,
    trained: bool,  # whether the backbone has trained weights
    train_set: Sequences,
    batch_size: int,
    seed: int,  # of the order of sequences
) -> float:
    """Measure the standard deviation of the residual, in [-1, 1] units of the frames.

    The sequences are those that an epoch of training begins with, which prefers rain among random crops.

    The residual is that of the backbone if it is trained, otherwise that of persistence. The processes share the
    sequences and return the same number. Raises `InputError` if the residual is the same everywhere.
    """
    trend = model.backbone if trained else build_backbone("persistence", *_sizes(model))
    place(trend, accelerator.device).eval()
    chosen = train_set.order(seed, 0)[:SEQUENCES].tolist()
    batches = EvaluationBatches(chosen, batch_size, accelerator.process_index, accelerator.num_processes)
    sums = torch.zeros(3, dtype=torch.float64)
    for _, frames in tqdm(
        load_batches(train_set, batches, 0, accelerator.device),
        desc="measuring residuals",
        total=len(batches),
        disable=not accelerator.is_main_process,
    ):
        sums += _moments(trend, *frames.tensor_split([model.frames_in], dim=1))
    scale = _deviation(*sum_over_processes(accelerator, sums).tolist())
    LOG.info(
        "--residual_scale auto: %g, the standard deviation of the residual of %s on %d of %d training sequences",
        scale,
        "the trained backbone" if trained else "persistence",
        len(chosen),
        len(train_set),
    )
    return scale


def _sizes(model: DiffCast) -> tuple:
    return model.frame_shape, model.frames_in, model.frames_out


@torch.no_grad()
def _moments(trend: Backbone, observed: Tensor, future: Tensor) -> Tensor:
    """Number, sum and sum of squares of the residuals, float64.

    Pixels that are missing in the future or in the last observed frame do not count.
    """
    residual = 2 * (future - trend.trend(without_gaps(observed)).float())
    residual = residual.where(~observed[:, -1:].isnan(), torch.nan).cpu().double()
    return torch.stack([(~residual.isnan()).sum(), residual.nansum(), residual.square().nansum()])


def _deviation(number: float, total: float, squares: float) -> float:
    """Standard deviation, rounded."""
    variance = squares / number - (total / number) ** 2 if number else 0.0
    if not variance > 0:
        raise InputError(
            "--residual_scale auto finds no change in the training sequences; check the data, or give a number."
        )
    return min(2.0, float(f"{variance**0.5:.{DIGITS}g}"))
