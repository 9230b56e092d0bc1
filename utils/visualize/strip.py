"""The strip: a row per forecast, a column per lead time."""

from collections.abc import Mapping
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from utils.visualize.page import Page, save
from utils.visualize.rows import paint_rows
from utils.visualize.style import Style, Styled

COLUMNS = 7  # lead times shown at most


def draw_strip(path: str | Path, inputs: ArrayLike, rows: Mapping[str, ArrayLike | Styled], style: Style) -> None:
    """Write a PNG with the inputs on top, then one row per forecast and one column per lead time.

    Of each sequence it shows at most seven frames, evenly spread, the first and the last among them. A legend stands
    beside the rows that are painted in its style.

    Args:
        path: the PNG file to write.
        inputs: the observed frames `(T_in, H, W)` in [0, 1], NaN where data are missing.
        rows: label -> frames `(T_out, H, W)`, from top to bottom, such as "Target", "Trend", "DiffCast".
        style: colours, units and time step of the inputs, and of each row that is not `Styled` otherwise.

    Raises:
        InputError: `path` cannot be written.
    """
    palette, rows = paint_rows(inputs, rows, style)
    page = Page(palette, rows[0].frames.shape[1:], text_share=10)
    shown = [_spread(len(row.frames)) for row in rows]
    titled = [True, *(above.start != row.start or above.style != row.style for above, row in pairwise(rows))]
    tops = (np.cumsum(titled) * page.line + np.arange(len(rows)) * (page.height + page.gap)).tolist()
    left = page.margin + page.text_width(*(row.label for row in rows)) + page.margin
    right = left + max(map(len, shown)) * page.column_step - page.gap
    legend_width = max(page.legend_width(row.style) for row in rows)

    canvas = page.blank(right + legend_width, tops[-1] + page.height + page.margin)
    for row, top, indices, has_titles in zip(rows, tops, shown, titled, strict=True):
        page.write(canvas, left - page.margin, top + page.height // 2, row.label, "rm")
        for column, index in enumerate(indices):
            x = left + column * page.column_step
            page.put_panel(canvas, x, top, row.frames[index])
            if has_titles:
                page.write_title(canvas, x, top, row.lead(index))
    for shared, run in groupby(zip(rows, tops, strict=True), key=lambda placed: placed[0].style):
        run = list(run)
        missing = any(row.has_missing for row, _ in run)
        page.put_legend(canvas, right + page.margin, run[0][1], run[-1][1] + page.height, shared, missing)
    save(path, [canvas], palette, format="PNG")


def _spread(length: int) -> list[int]:
    """Indices of at most `COLUMNS` evenly spread frames, the first and the last always among them."""
    count = min(length, COLUMNS)
    return (np.arange(count) * (length - 1) // max(count - 1, 1)).tolist()
