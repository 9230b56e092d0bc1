"""What a picture shows: the inputs and each forecast as painted frames with a label."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from utils.visualize.style import MISSING, Palette, Style, Styled


class Row(NamedTuple):
    """Palette indices `(T, H, W)` of consecutive frames."""

    label: str
    style: Style
    start: int  # frame intervals from the last input to the first of `frames`
    frames: np.ndarray

    @property
    def has_missing(self) -> bool:
        return bool((self.frames == MISSING).any())

    def lead(self, index: int) -> str:
        """The time of a frame relative to the last input."""
        step = self.start + index
        return f"{step * self.style.interval:+g} min" if step else "0 min"


def paint_rows(inputs: ArrayLike, rows: Mapping[str, ArrayLike | Styled], style: Style) -> tuple[Palette, list[Row]]:
    """Paint the inputs `(T_in, H, W)` and the rows `(T_out, H, W)`; the inputs become the first row."""
    styled = {label: row if isinstance(row, Styled) else Styled(row, style) for label, row in rows.items()}
    palette = Palette([style, *(row.style for row in styled.values())])
    observed = palette.paint(inputs, style)
    forecasts = {label: palette.paint(*row) for label, row in styled.items()}
    shapes = {frames.shape for frames in forecasts.values()}
    if observed.ndim != 3 or len(shapes) != 1 or min(shapes)[1:] != observed.shape[1:]:
        raise ValueError(f"inputs {observed.shape} and rows {sorted(shapes)} must be frames (T, H, W) of one size")
    return palette, [
        Row("Input", style, 1 - len(observed), observed),
        *(Row(label, styled[label].style, 1, frames) for label, frames in forecasts.items()),
    ]
