"""A forecast as a matplotlib figure, for notebooks."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from dataset.source import Source
from diffcast.forecasting.pictures import style_of
from utils.errors import InputError
from utils.files import replacing
from utils.visualize import draw_animation

COLUMNS = 7  # frames of a row at most
MEMBERS = 3  # drawn at most
SUFFIXES = (".png", ".pdf", ".gif")


def draw_forecast(
    path: Path,
    observed: Tensor,  # (T_in, C, H, W)
    future: Tensor | None,  # (T_out, C, H, W); None if it is not known
    ensemble: Tensor,  # (M, T_out, C, H, W)
    source: Source,
) -> Figure:
    """Draw the first channel of a forecast to a file.

    PNG and PDF hold the figure, and a GIF is an animation.

    Frames lie in [0, 1], or are NaN where data are missing. Raises `InputError` for another suffix, or if the file
    cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} must end in {', '.join(SUFFIXES)}.")
    inputs, rows = _frames(observed), _rows(future, ensemble)
    figure = _figure(inputs, rows, source)
    if path.suffix == ".gif":
        draw_animation(path, inputs, rows, style_of(source))
    else:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150)
    return figure


def _frames(frames: Tensor) -> np.ndarray:
    """The first channel `(T, H, W)` of frames `(T, C, H, W)`."""
    return frames[:, 0].detach().float().cpu().numpy()


def _rows(future: Tensor | None, ensemble: Tensor) -> dict[str, np.ndarray]:
    """Return frames `(T, H, W)` by label: future, first members, their mean."""
    rows = {} if future is None else {"Future": _frames(future)}
    if len(ensemble) == 1:
        return rows | {"Forecast": _frames(ensemble[0])}
    members = {f"Member {number}": _frames(one) for number, one in enumerate(ensemble[:MEMBERS], start=1)}
    return rows | members | {"Mean": _frames(torch.mean(ensemble, dim=0))}


def _figure(inputs: np.ndarray, rows: dict[str, np.ndarray], source: Source) -> Figure:
    """A row of frames per label, a column per time."""
    height, width = inputs.shape[1:]
    figure = Figure(figsize=(1.6 * COLUMNS, (1.6 * height / width + 0.2) * (len(rows) + 1)), layout="constrained")
    colors = ListedColormap(source.colors).with_extremes(bad="#dcdcdc")
    norm = BoundaryNorm(source.bounds, len(source.colors))
    axes = figure.subplots(len(rows) + 1, COLUMNS, squeeze=False)
    for line, (label, frames) in zip(axes, ({"Observed": inputs} | rows).items(), strict=True):
        first = 1 - len(inputs) if label == "Observed" else 1  # steps after the newest observed frame
        shown = np.arange(len(frames) - 1, -1, -math.ceil(len(frames) / COLUMNS))[::-1]  # in even steps, to the last
        line[0].set_ylabel(label, visible=True)
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, index in zip(line, shown, strict=False):
            image = source.offset + source.scale * frames[index]
            axis.imshow(np.ma.masked_invalid(image), cmap=colors, norm=norm, interpolation="nearest")
            minutes = (first + index) * source.interval
            axis.set_title(f"{minutes:+g} min" if minutes else "0 min", fontsize="small")
    figure.colorbar(ScalarMappable(norm, colors), ax=axes, label=source.units, ticks=source.bounds, pad=0.01)
    return figure
