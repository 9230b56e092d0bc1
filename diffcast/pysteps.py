"""Forecasts for programs of pysteps: `forecast` is called as the methods in `pysteps.nowcasts` are.

from diffcast.pysteps import forecast

ensemble = forecast(precip, None, 12, model="best.safetensors", members=20)  # (members, time, y, x)
"""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dataset.source import Source
from dataset.units import same_units
from diffcast import api
from diffcast.evaluation.results import described_source
from diffcast.model import DiffCast
from utils.errors import InputError


def forecast(
    precip: np.ndarray,
    velocity: np.ndarray | None,
    timesteps: int | Sequence[int],
    model: nn.Module | str | Path,
    members: int = 1,
    seed: int = 0,
    source: Source | None = None,
    metadata: dict | None = None,
    **options,
) -> np.ndarray:
    """Forecast precipitation, with the arguments and results of a nowcast method of pysteps.

    Args:
        precip: fields `(n, y, x)`, oldest first, at the interval of the frames that the model was trained on, and at
            least as many as it observes. Values are in the units of those frames, so a rain rate must not be in dB.
            NaN and masked values are missing, and -inf is dry. Row 0 is the northern edge (yorigin "upper").
        velocity: ignored, because the model finds the motion itself. It may be None.
        timesteps: number of forecast fields, or their numbers in ascending order, such as [1, 2, 6]. 1 is one interval
            after the last field.
        model: weights, or what `diffcast.load` returns. Weights are read at each call.
        members: members of the ensemble. A backbone alone makes one forecast.
        seed: seed of the noise.
        source: what frames of the model stand for. The default is what its checkpoint says.
        metadata: pysteps' metadata of `precip`. If given, they are compared with what the model was trained on.
        options: other options of `diffcast.forecast`, such as `sampler` and `sampling_steps`.

    Returns:
        Float32 fields in the units of `precip`, `(members, time, y, x)`, or `(time, y, x)` from a backbone alone. They
        are NaN where no observed field of those used has data.

    Raises:
        InputError: an argument does not fit the model.
    """
    if not isinstance(model, nn.Module):
        model = api.load(model)
    source = source or described_source(model.trained_on)
    leads = _leads(timesteps, model.frames_out)
    precip = np.ma.masked_array(precip, dtype=np.float32).filled(np.nan)
    if precip.ndim != 3 or len(precip) < model.frames_in:
        raise InputError(f"precip must have the shape (n, y, x) with n >= {model.frames_in}, not {precip.shape}.")
    if metadata is not None:
        _check_metadata(metadata, source)
    observed = torch.from_numpy(precip[-model.frames_in :])[:, None]
    observed = source.to_frames(observed).clamp(0, 1)
    made = api.forecast(model, observed[None], members, seed, **options)[0, :, leads, 0]
    made = source.in_units(made).masked_fill(observed.isnan().all(dim=0)[0], torch.nan).numpy()
    return made if isinstance(model, DiffCast) else made[0]


def _leads(timesteps: int | Sequence[int], most: int) -> list[int]:
    """Positions of the wanted fields among those that the model forecasts."""
    numbers = list(range(1, timesteps + 1)) if isinstance(timesteps, Integral) else list(timesteps)
    if not numbers or numbers[0] < 1 or any(number != int(number) for number in numbers) or numbers != sorted(numbers):
        raise InputError(f"timesteps must be a number or a list of ascending whole numbers from 1 up, not {timesteps}.")
    if numbers[-1] > most:
        raise InputError(f"timesteps goes to {numbers[-1]:g}, but the model forecasts {most} fields; ask for fewer.")
    return [int(number) - 1 for number in numbers]


def _check_metadata(metadata: dict, source: Source) -> None:
    """Raise `InputError` where metadata of pysteps contradict what a model was trained on."""
    unit, transform = metadata["unit"], metadata["transform"]
    if not same_units(unit, source.units):
        raise InputError(f"precip is in {unit}, but the model was trained on {source.units}; convert it.")
    if transform != (usual := "dB" if same_units(unit, "dBZ") else None):
        raise InputError(f"precip in {unit} has the transform {transform}, not {usual}; transform it back.")
    if same_units(unit, "mm") and metadata["accutime"] != source.interval:
        raise InputError(
            f"precip is the rain of {metadata['accutime']:g} minutes, but the model was trained on that of "
            f"{source.interval:g}; use pysteps.utils.aggregate_fields_time."
        )
    if metadata["yorigin"] != "upper":
        raise InputError("precip goes from south to north (yorigin lower); turn it by precip[:, ::-1].")
