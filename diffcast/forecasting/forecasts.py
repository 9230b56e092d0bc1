"""Forecasts of a model, next to its trend and the baselines."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset.source import Source
from diffcast.forecasting import steps
from diffcast.model import DiffCast, Generators
from diffcast.objectives import OBJECTIVES
from diffcast.precision import forecast_precision
from diffcast.samplers import SAMPLERS, STEPS
from diffcast.tiles import blended_trend
from models import build_backbone
from models.backbone import without_gaps
from utils.errors import InputError
from utils.options import check_values, option

BASELINES = ("advection", "persistence")
MAX_MEMBERS = 500  # rank scores take a gigabyte for these, and their memory grows as the cube of the members
BAR_DELAY = 3  # seconds of a forecast before a progress bar appears


@dataclass(frozen=True)
class ForecastSettings:
    """How to forecast. Raises `InputError` for impossible values."""

    members: int = option(
        1, "members of the ensemble. A backbone alone makes one forecast", at_least=1, at_most=MAX_MEMBERS
    )
    sampler: str | Callable | None = option(
        None,
        "sampler. The default is what the weights were trained for: "
        + ", ".join(f"{one.sampler} after --objective {name}" for name, one in OBJECTIVES.items())
        + ". The official code uses ddim",
        choices=tuple(SAMPLERS),
    )
    sampling_steps: int | None = option(
        None,
        "network evaluations per segment. The default is "
        + ", ".join(f"{one.sampling_steps} after --objective {name}" for name, one in OBJECTIVES.items())
        + f", and {', '.join(f'{n} for {name}' for name, n in STEPS.items())} if the sampler is another one",
        at_least=1,
        at_most=1000,  # times of the official diffusion process
    )
    seed: int = option(0, "seed of the noise", at_least=0, at_most=2**63 - 1)
    baselines: tuple[str, ...] = option(
        BASELINES,
        "simple forecasts to compare with. extrapolation, sprog and steps are those of pysteps, see docs/evaluation.md",
        nargs="*",
        choices=(*BASELINES, *steps.METHODS),
    )
    forecast_batch: int = option(
        12,
        "number of forecasts (sequences x members x tiles) to make at once. Lower it if memory is short",
        at_least=1,
        rare=True,
    )
    forecast_precision: str = option(
        "auto",
        "precision of the diffusion networks in forecasts. auto is bfloat16 on a device that computes in it natively, "
        "otherwise float32",
        choices=("auto", "float32", "bfloat16"),
        rare=True,
    )
    compile: bool = False  # compile the diffusion networks by torch.compile
    tile: int | None = option(
        None,
        "pixels of the overlapping tiles in which weights of crops forecast a map, 0 for one piece. The default is the "
        "size of the crops",
        at_least=0,
        rare=True,
    )

    def __post_init__(self):
        check_values(self)
        steps.check_packages(self.of_pysteps)
        if callable(self.sampler) and self.sampling_steps is None:
            raise InputError("sampling_steps has no default for a sampler of your own; give a number.")

    def fitting(self, model: nn.Module) -> "ForecastSettings":
        """Fill in the sampler and the number of evaluations that a model was trained for.

        Raises `InputError` for a sampler that cannot work with the model's weights.
        """
        return self.of_objective(model.objective) if isinstance(model, DiffCast) else self

    def of_objective(self, objective: str) -> "ForecastSettings":
        """Fill in the sampler and the number of evaluations of a key of `OBJECTIVES`, as `fitting` does."""
        usual = OBJECTIVES[objective]
        sampler = self.sampler or usual.sampler
        number = self.sampling_steps or (usual.sampling_steps if sampler == usual.sampler else STEPS[sampler])
        if objective == "crps" and not callable(sampler) and (sampler, number) != usual[:2]:
            raise InputError(
                f"sampler {sampler} with {number} sampling_steps is not possible: weights of the objective crps need "
                f"{usual.sampler} with {usual.sampling_steps}; leave out both."
            )
        return replace(self, sampler=sampler, sampling_steps=number)

    @property
    def of_pysteps(self) -> tuple[str, ...]:
        """The baselines that pysteps makes."""
        return tuple(name for name in self.baselines if name in steps.METHODS)

    def nowcaster(self, source: Source, pixel_km: float, leads: int) -> steps.Nowcaster:
        """Prepare the baselines of pysteps. Raises `InputError` if the source does not suit them."""
        return steps.Nowcaster(self.of_pysteps, source, pixel_km, leads, self.members, self.seed)


def check_members(model: nn.Module, settings: ForecastSettings) -> None:
    """Raise `InputError` if several members are to come from a backbone alone, and STEPS takes none of them."""
    if settings.members > 1 and not isinstance(model, DiffCast) and "steps" not in settings.baselines:
        raise InputError(f"{type(model).__name__} is a backbone alone, which makes one forecast; leave out members.")


class Forecast(NamedTuple):
    """A forecast and its deterministic part, without gradients."""

    ensemble: Tensor  # (B, M, T, C, H, W) in [0, 1]; M is 1 for a backbone alone
    trend: Tensor  # (B, T, C, H, W), not clamped


def forecast_bar(model: nn.Module, forecasts: int) -> tqdm:
    """A progress bar of the segments of forecasts (sequences x members), which appears after some seconds."""
    segments = forecasts * (model.segments if isinstance(model, DiffCast) else 1)
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    return tqdm(total=segments, desc="forecasting", bar_format=form, delay=BAR_DELAY, leave=False)


@torch.no_grad()
def forecast(
    model: nn.Module,
    observed: Tensor,  # (B, T_in, C, H, W) in [0, 1], of any height and width, NaN where data are missing
    settings: ForecastSettings,
    draws: Generators,  # of the noise, one per sequence
    progress: Callable[[float], object] | None = None,  # called with each share of a segment that was made
) -> Forecast:
    """Forecast an ensemble and its trend."""
    observed = without_gaps(observed)
    if not isinstance(model, DiffCast):
        trend = blended_trend(model, observed, settings.tile, settings.forecast_batch // len(observed))
        return Forecast(trend.clamp(0, 1)[:, None], trend)
    settings = settings.fitting(model)
    made = model.generate(
        observed,
        settings.members,
        draws,
        settings.sampler,
        settings.sampling_steps,
        forecast_batch=settings.forecast_batch,
        precision=forecast_precision(settings.forecast_precision, observed.device),
        compiled=settings.compile,
        progress=progress,
        tile=settings.tile,
    )
    return Forecast(made.forecast.float(), made.trend.float())


def forecast_all(
    model: nn.Module,
    observed: Tensor,  # (B, T_in, C, H, W) in [0, 1], NaN where data are missing
    settings: ForecastSettings,
    draws: Generators,
    name: str,
    progress: Callable[[float], object] | None = None,  # called with each share of a segment that was made
) -> dict[str, Tensor]:
    """Forecast with the model, its trend and the baselines but for those of pysteps.

    Returns forecasts `(B, M, T, C, H, W)` in [0, 1] by name. `name` is that of the model's own.
    """
    made = forecast(model, observed, settings, draws, progress)
    forecasts = {name: made.ensemble}
    if isinstance(model, DiffCast):
        forecasts["trend"] = made.trend.clamp(0, 1)[:, None]
    for baseline in settings.baselines:
        if baseline in BASELINES and baseline not in forecasts:
            simple = build_backbone(baseline, model.frame_shape, model.frames_in, model.frames_out)
            forecasts[baseline] = simple.forecast(without_gaps(observed).float())
    return forecasts
