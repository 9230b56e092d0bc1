"""Colours, times and distances of the frames of a picture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import ImageColor

MISSING = (0xDC, 0xDC, 0xDC)


@dataclass(frozen=True)
class Style:
    """How frames are painted.

    A frame value `x` in [0, 1] stands for `offset + scale * x` in `units`, or it reaches the inner bounds where
    `scale * x` reaches `steps`. `colors[i]` paints values in `[bounds[i], bounds[i + 1])`. The outermost colours also
    paint values beyond the outermost bounds.
    """

    scale: float
    bounds: tuple[float, ...]  # ascending, in `units`
    colors: tuple[str, ...]  # "#rrggbb"
    units: str
    offset: float = 0.0
    meanings: tuple[str, ...] = ()  # further text of the inner bounds in the legend
    steps: tuple[float, ...] | None = None  # None: bounds minus offset

    def __post_init__(self):
        if len(self.colors) != len(self.bounds) - 1:
            raise ValueError(
                f"{len(self.bounds)} bounds and {len(self.colors)} colours make no style: "
                "give one colour between each two neighbouring bounds."
            )

    @property
    def rgb(self) -> np.ndarray:
        """The colours, uint8 `(number, 3)`."""
        return np.array([ImageColor.getrgb(color) for color in self.colors], dtype=np.uint8)

    @property
    def labels(self) -> list[str]:
        """The text of the inner bounds in the legend."""
        meanings = self.meanings or [""] * (len(self.bounds) - 2)
        return [f"{bound:g} {meaning}".strip() for bound, meaning in zip(self.bounds[1:-1], meanings, strict=True)]


class Styled(NamedTuple):
    """Frames `(T, H, W)` with a style of their own."""

    frames: ArrayLike
    style: Style


class Row(NamedTuple):
    """Consecutive frames `(T, H, W)` with a label."""

    label: str
    style: Style
    start: int  # frame intervals from the last input to the first of `frames`
    frames: np.ndarray

    @property
    def has_missing(self) -> bool:
        """Whether data are missing in a frame."""
        return bool(np.isnan(self.frames).any())


@dataclass(frozen=True)
class Coordinates:
    """Times and distances of a picture's frames."""

    interval: float  # minutes between frames
    pixel_km: float
    time: datetime | None = None  # of the last input in UTC, if frames have dates
    grid: bool = False  # whether lines are drawn on the frames, `spacing` kilometres apart
    map: np.ma.MaskedArray | None = None  # grey levels `(H, W)` of a panel that lie over every frame, masked elsewhere

    def spacing(self, width: int) -> float:
        """A round number of kilometres, at least a fifth of a frame of so many pixels."""
        fifth = self.pixel_km * width / 5
        power = 10.0 ** math.floor(math.log10(fifth))
        return power * min(digit for digit in (1, 2, 5, 10) if digit * power >= fifth)

    def lines(self, size: tuple[int, int]) -> np.ndarray:
        """Mask `(H, W)` of the lines, which count from the lower left corner."""
        if not self.grid:
            return np.zeros(size, bool)
        step = self.spacing(size[1]) / self.pixel_km
        rows, columns = (np.floor(np.arange(pixels) / step) for pixels in size)
        return (np.diff(rows, prepend=0) > 0)[::-1, None] | (np.diff(columns, prepend=0) > 0)

    def lead(self, step: int) -> str:
        """The minutes from the last input to the frame `step` intervals later."""
        return f"{step * self.interval:+g} min" if step else "0 min"

    def valid(self, step: int, form: str) -> list[str]:
        """The time of that frame in a list, empty without dates."""
        return [] if self.time is None else [f"{self.time + timedelta(minutes=step * self.interval):{form}} UTC"]


def render(frames: ArrayLike, style: Style) -> np.ndarray:
    """Paint frames `(..., H, W)` in [0, 1] as RGB, uint8 `(..., H, W, 3)`.

    NaN (missing data) becomes grey.
    """
    # In float32, as scores compare with thresholds: a byte / 255 then reaches exactly the bound it stands on.
    values = np.asarray(frames, dtype=np.float32) * np.float32(style.scale)
    steps = np.subtract(style.bounds[1:-1], style.offset) if style.steps is None else np.array(style.steps)
    painted = style.rgb[np.searchsorted(steps.astype(np.float32), values, side="right")]
    return np.where(np.isnan(values)[..., None], np.uint8(MISSING), painted)


def rows_of(inputs: ArrayLike, rows: Mapping[str, ArrayLike | Styled], style: Style) -> list[Row]:
    """The inputs `(T_in, H, W)`, then the forecasts `(T_out, H, W)`."""
    styled = {label: row if isinstance(row, Styled) else Styled(row, style) for label, row in rows.items()}
    observed = np.asarray(inputs, dtype=np.float32)
    forecasts = [Row(label, row.style, 1, np.asarray(row.frames, np.float32)) for label, row in styled.items()]
    shapes = {row.frames.shape for row in forecasts}
    if observed.ndim != 3 or len(shapes) != 1 or min(shapes)[1:] != observed.shape[1:]:
        raise ValueError(f"inputs {observed.shape} and rows {sorted(shapes)} must be frames (T, H, W) of one size")
    return [Row("Input", style, 1 - len(observed), observed), *forecasts]
