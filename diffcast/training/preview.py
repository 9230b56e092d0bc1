"""Scores and a picture of a few validation forecasts, for the trackers."""

import numpy as np
import torch
from torch import Tensor, nn

from dataset.sequences import Sequences
from dataset.source import Source
from diffcast.forecasting.forecasts import ForecastSettings, forecast
from diffcast.forecasting.pictures import style_of
from diffcast.loading import generators, load_batches, spread
from diffcast.model import DiffCast
from utils.metrics import Scores
from utils.visualize import render

# Few, since the other processes of a training wait: a minute on one processor core at 128 x 128 pixels.
SEQUENCES = 3  # evenly spaced in the validation split
MEMBERS = 2
COLUMNS = 4  # lead times in the picture


def preview(
    model: nn.Module, valid_set: Sequences, device: torch.device, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """Forecast a few validation sequences, with the same noise every time.

    Returns their CSI and CRPS, and the picture (uint8 RGB `(height, width, 3)`) of one of them: the target above the
    forecast, at lead times that are evenly spaced.
    """
    settings = ForecastSettings(members=MEMBERS if isinstance(model, DiffCast) else 1, seed=seed)
    scores = Scores.of(valid_set.source, model.frames_out, settings.members)
    chosen = spread(len(valid_set), SEQUENCES)
    for indices, frames in load_batches(valid_set, [[index] for index in chosen], 0, device):
        observed, future = frames.tensor_split([model.frames_in], dim=1)
        ensemble = forecast(model, observed, settings, generators(device, seed, 3, indices)).ensemble
        scores.update(ensemble, future)
    found = scores.compute()
    picture = np.concatenate([_row(frames, valid_set.source) for frames in (future[0], ensemble[0, 0])])
    return {name: found[name] for name in ("csi", "crps")}, picture


def _row(frames: Tensor, source: Source) -> np.ndarray:
    """Paint a row of frames `(T, C, H, W)`."""
    shown = frames[:: -(len(frames) // -COLUMNS), 0].cpu().numpy()
    return np.concatenate(list(render(shown, style_of(source))), axis=1)
