"""Pictures of forecasts and of the statistics of ensembles."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dataset.frames.georeference import Georeference
from dataset.frames.packages import has
from dataset.source import Source, physical
from utils.errors import InputError
from utils.visualize import Coordinates, Style, Styled, draw_animation, draw_strip, panel_size

SUFFIXES = (".png", ".pdf", ".gif")
LARGEST = 400  # pixels of a side of the frames that are drawn; of larger ones, every second or third pixel is
MEMBERS_DRAWN = 8  # at most, of all ensembles together
TITLES = {"simvp": "SimVP", "phydnet": "PhyDNet", "convgru": "ConvGRU", "sprog": "S-PROG", "steps": "STEPS"}


def draw_case(
    folder: Path,
    name: str,  # of the case: the files are named after it
    observed: Tensor,  # (T_in, C, H, W)
    target: Tensor | None,  # (T_out, C, H, W), if the future was observed
    forecasts: Mapping[str, Tensor],  # name -> (M, T_out, C, H, W), M = 1 if deterministic
    source: Source,
    pixel_km: float,
    time: datetime | None = None,  # of the last observed frame in UTC, if frames have dates
    grid: bool = False,  # draw lines every so many kilometres, unless there is a map
    place: Georeference | None = None,  # of the frames; with it and cartopy, a map lies over them
) -> list[Path]:
    """Draw the first channel of one sequence and of its forecasts.

    Frames are in [0, 1], NaN where data are missing. Writes `<name>.png` and `<name>.gif` with the frames of each
    forecast, of ensembles up to eight members together. If there is an ensemble, writes `<name>_ensemble.png` and
    `.gif` with its mean, its spread (standard deviation), and the share of members that reach the source's second and
    third thresholds. Returns the files. Raises `InputError` if one cannot be written.
    """
    every = -(-max(observed.shape[-2:]) // LARGEST)  # of the pixels of a large map
    observed, target = observed[..., ::every, ::every], None if target is None else target[..., ::every, ::every]
    forecasts = {forecast: frames[..., ::every, ::every] for forecast, frames in forecasts.items()}
    lines = _map(place, every, observed.shape[-2:])
    coordinates = Coordinates(source.interval, every * pixel_km, time, grid and lines is None, lines)
    inputs = _first_channel(observed)
    future = {} if target is None else {"Target": _first_channel(target)}
    members = {title(forecast): _first_channel(frames) for forecast, frames in forecasts.items()}
    pictures = {name: future | _frame_rows(members)}
    ensembles = {label: frames for label, frames in members.items() if len(frames) > 1}
    if ensembles:
        pictures[f"{name}_ensemble"] = future | _ensemble_rows(ensembles, source)
    files = []
    for stem, rows in pictures.items():
        for suffix, draw in (("png", draw_strip), ("gif", draw_animation)):
            files.append(folder / f"{stem}.{suffix}")
            draw(files[-1], inputs, rows, style_of(source), coordinates)
    return files


def _map(place: Georeference | None, every: int, size: tuple[int, int]) -> np.ma.MaskedArray | None:
    """The map over frames of which each so many pixels are drawn, `(H, W)` together."""
    if place is None or not (place.crs or place.geographic) or not has("cartopy"):
        return None
    from diffcast.forecasting.maps import draw_map

    return draw_map(replace(place, x=place.x[::every], y=place.y[::every]), panel_size(size))


def draw_forecast(
    path: Path,
    observed: Tensor,  # (T_in, C, H, W)
    future: Tensor | None,  # (T_out, C, H, W), if it was observed
    ensemble: Tensor,  # (M, T_out, C, H, W)
    source: Source,
) -> Figure:
    """Draw the first channel of one forecast to a PNG or PDF, or animate it in a GIF.

    Frames are in [0, 1], NaN where data are missing. The rows are the future, up to three members, and the mean of all.
    Raises `InputError` for another suffix, or if the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
    rows = {} if future is None else {"Target": _first_channel(future)}
    members = _first_channel(ensemble)
    if len(members) == 1:
        rows["Forecast"] = members[0]
    else:
        rows |= {f"Member {number}": one for number, one in enumerate(members[:3], start=1)}
        rows["Mean"] = _mean(members, source)
    draw = draw_animation if path.suffix == ".gif" else draw_strip
    coordinates = Coordinates(source.interval, source.extent / observed.shape[-1])
    return draw(path, _first_channel(observed), rows, style_of(source), coordinates)


def title(name: str) -> str:
    """The name of a forecast in pictures."""
    if name.startswith("diffcast"):
        return "DiffCast"
    name = name.rpartition(":")[2]  # the class of a user's own backbone
    return TITLES.get(name, name[:1].upper() + name[1:])


def style_of(source: Source) -> Style:
    """The style of a data source, with physical units in the legend."""
    meanings = [physical(bound, source.units).split("\N{NO-BREAK SPACE}") for bound in source.bounds[1:-1]]
    units, numbers = _units(source), ()
    if all(len(meaning) == 2 for meaning in meanings):
        units, numbers = f"{units}\n({meanings[0][1]})", tuple(f"({number})" for number, _ in meanings)
    steps = tuple(map(source.step, source.bounds[1:-1]))
    return Style(source.scale, source.bounds, source.colors, units, source.offset, numbers, steps)


def _units(source: Source) -> str:
    return f"synthetic {source.units}" if source.synthetic else source.units


def _first_channel(frames: Tensor) -> Tensor:
    return frames[..., 0, :, :].float().cpu()


def _frame_rows(members: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frames `(T, H, W)` of each deterministic forecast and each member."""
    shown = MEMBERS_DRAWN // max(1, sum(len(frames) > 1 for frames in members.values()))
    return {
        label if len(frames) == 1 else f"{label} {number}": one
        for label, frames in members.items()
        for number, one in enumerate(frames[:shown], start=1)
    }


def _ensemble_rows(ensembles: Mapping[str, Tensor], source: Source) -> dict[str, Styled]:
    """The quantities of each ensemble `(M, T, H, W)`, ordered by style."""
    return {
        quantity if len(ensembles) == 1 else f"{label}: {quantity}": Styled(statistic(members), style)
        for quantity, (statistic, style) in _quantities(source).items()
        for label, members in ensembles.items()
    }


def _quantities(source: Source) -> dict[str, tuple[Callable[[Tensor], Tensor], Style]]:
    """By label, a function of members `(M, T, H, W)` and a style."""
    mean = (partial(_mean, source=source), style_of(source))
    spread = (lambda members: source.shares(members).std(dim=0), _spread_style(source))
    chances = {
        f"P({source.name} ≥ {threshold:g})": (partial(exceedance, scale=source.scale, step=step), _percent(source))
        for threshold, step in list(zip(source.thresholds, source.steps, strict=True))[1:3]
    }
    return {"Mean": mean, "Spread": spread, **chances}


def _mean(members: Tensor, source: Source) -> Tensor:
    """Frames of the mean of members `(M, ...)`, which is taken in units."""
    return source.frames(source.shares(members).mean(dim=0))


def exceedance(members: Tensor, scale: float, step: float) -> Tensor:
    """Share of members `(M, ...)` for which `scale * x` reaches `step`.

    NaN where a member is NaN.
    """
    reached = (scale * members >= step).float()
    return reached.where(members.isfinite(), torch.nan).mean(0)


def _percent(source: Source) -> Style:
    """The style of probabilities. 0 has the colour of no rain."""
    bounds = (0, 1, *range(10, 101, 10))
    return Style(100, bounds, _sequential("YlGnBu", len(bounds) - 1, source), "%")


def _spread_style(source: Source) -> Style:
    """The style of standard deviations, up to a third of the scale, or with the bounds of a logarithmic one."""
    ticks = MaxNLocator(nbins=10, steps=[1, 2, 2.5, 5, 10]).tick_values(0, 0.35 * source.scale).tolist()
    bounds = source.bounds if source.transform else tuple(ticks)
    colors = _sequential("YlOrBr", len(bounds) - 1, source)
    return Style(source.scale, bounds, colors, _units(source))


def _sequential(colormap: str, number: int, source: Source) -> tuple[str, ...]:
    """The source's lowest colour and increasingly dark colours of a colour map."""
    return (source.colors[0], *map(to_hex, colormaps[colormap](np.linspace(0.2, 1, number - 1))))
