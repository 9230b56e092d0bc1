"""The strip: a row per forecast, a column per lead time."""

from collections.abc import Mapping
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from utils.files import replacing
from utils.visualize.page import Page
from utils.visualize.style import Coordinates, Row, Style, Styled, rows_of

COLUMNS = 7  # lead times shown at most


def draw_strip(
    path: str | Path,
    inputs: ArrayLike,
    rows: Mapping[str, ArrayLike | Styled],
    style: Style,
    coordinates: Coordinates,
) -> Figure:
    """Draw a row per forecast and a column per lead time.

    The inputs come first. The picture shows at most seven frames of each sequence, in equal steps. A legend stands next
    to the rows in its style, and a scale bar below. Returns the picture as a figure.

    Args:
        path: the file to write, in a format of matplotlib such as PNG or PDF.
        inputs: the observed frames `(T_in, H, W)` in [0, 1], NaN where data are missing.
        rows: label -> frames `(T_out, H, W)`, from top to bottom, such as "Target", "Trend", "DiffCast".
        style: colours and units of the inputs, and of each row that is not `Styled` otherwise.
        coordinates: time step, size of pixels, and date if there is one.

    Raises:
        InputError: `path` cannot be written.
    """
    rows = rows_of(inputs, rows, style)
    page = Page(rows[0].frames.shape[1:], 10, [_title(coordinates, 0), *(row.style.units for row in rows)], coordinates)
    columns = [_columns(row) for row in rows]
    titled = [True, *(above.start != row.start or above.style != row.style for above, row in pairwise(rows))]
    tops = (np.cumsum(titled) * page.titles + np.arange(len(rows)) * (page.height + page.gap)).tolist()
    left = page.margin + page.text_width(*(row.label for row in rows)) + page.margin
    right = left + max(map(len, columns)) * page.column_step - page.gap
    foot = tops[-1] + page.height + page.line

    figure = page.open(right + max(page.legend_width(row.style) for row in rows), foot + page.margin)
    for row, top, shown, has_titles in zip(rows, tops, columns, titled, strict=True):
        page.write(left - page.margin, top + page.height / 2, row.label, "right")
        for column, index in enumerate(shown):
            x = left + column * page.column_step
            page.put(x, top, page.panel(row.frames[index], row.style))
            if has_titles:
                page.write_title(x, top, _title(coordinates, row.start + index))
    for shared, run in groupby(zip(rows, tops, strict=True), key=lambda placed: placed[0].style):
        run = list(run)
        missing = any(row.has_missing for row, _ in run)
        page.put_legend(right + page.margin, run[0][1], run[-1][1] + page.height, shared, missing)
    page.put_scale(left, foot)
    page.write(right, foot, "".join(f"last input: {date}" for date in coordinates.valid(0, "%Y-%m-%d %H:%M")), "right")
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return figure


def _title(coordinates: Coordinates, step: int) -> str:
    return "\n".join([*coordinates.valid(step, "%H:%M"), coordinates.lead(step)])


def _columns(row: Row) -> list[int]:
    """Indices of at most `COLUMNS` frames at multiples of a step.

    The step is chosen to include the last lead time if possible.
    """
    least = -(-len(row.frames) // COLUMNS)
    step = next((step for step in range(least, 2 * least) if len(row.frames) % step == 0), least)
    return [index for index in range(len(row.frames)) if (row.start + index) % step == 0]
