"""The animation: a panel per forecast."""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from utils.visualize.page import Page, save
from utils.visualize.rows import Row, paint_rows
from utils.visualize.style import PAPER, Style, Styled

COLUMNS = 4  # panels side by side at most
FRAME_MS = 200  # how long a frame is shown,
PAUSE_MS = 1000  # and how long the last input and the last forecast


def draw_animation(path: str | Path, inputs: ArrayLike, rows: Mapping[str, ArrayLike | Styled], style: Style) -> None:
    """Write an endless GIF with one panel per forecast; each plays the inputs, then its forecast.

    The time relative to the last input stands below the panels; the animation rests on the last input and on
    the last forecast. Panels that are painted in another style than the inputs stay empty until the forecast begins.

    Args:
        path: the GIF file to write.
        inputs: the observed frames `(T_in, H, W)` in [0, 1], NaN where data are missing.
        rows: label -> frames `(T_out, H, W)` in reading order, such as "Target", "Trend", "DiffCast".
        style: colours, units and time step of the inputs, and of each row that is not `Styled` otherwise.

    Raises:
        InputError: `path` cannot be written.
    """
    palette, [observed, *rows] = paint_rows(inputs, rows, style)
    page = Page(palette, observed.frames.shape[1:], text_share=14)
    blocks = _arrange(page, rows)
    background = _background(page, blocks, observed)
    corners = [corner for block in blocks for corner in block.corners]
    empty = np.full_like(observed.frames, PAPER)
    films = [np.concatenate([observed.frames if row.style == style else empty, row.frames]) for row in rows]

    canvases = []
    for step in range(len(films[0])):
        canvas = background.copy()
        for corner, film in zip(corners, films, strict=True):
            page.put_panel(canvas, *corner, film[step])
        phase = "observed" if step < len(observed.frames) else "forecast"
        page.write(canvas, page.margin, canvas.height - page.line // 2, f"{observed.lead(step)}  {phase}", "lm")
        canvases.append(canvas)

    durations = [FRAME_MS] * len(canvases)
    durations[len(observed.frames) - 1] = durations[-1] = PAUSE_MS
    save(path, canvases, palette, format="GIF", save_all=True, duration=durations, loop=0)


class _Block(NamedTuple):
    """Panels of one style, with their legend on the right."""

    rows: list[Row]
    corners: list[tuple[int, int]]  # upper left, (x, y)
    legend: tuple[int, int, int]  # x, top, bottom


def _arrange(page: Page, rows: list[Row]) -> list[_Block]:
    """Set neighbours of one style as a block, and the blocks like words, as wide as `COLUMNS` panels and a legend."""
    limit = COLUMNS * page.column_step + max(page.legend_width(row.style) for row in rows)
    blocks, x, y, below = [], 0, 0, 0
    for style, run in groupby(rows, key=lambda row: row.style):
        run = list(run)
        lines = -(-len(run) // COLUMNS)
        columns = -(-len(run) // lines)
        width = columns * page.column_step + page.legend_width(style)
        if x and x + width > limit:
            x, y = 0, below
        left, top, step = page.margin + x, y + page.line, page.line + page.height
        corners = [(left + i % columns * page.column_step, top + i // columns * step) for i in range(len(run))]
        blocks.append(_Block(run, corners, (left + columns * page.column_step, top, y + lines * step)))
        x, below = x + width, max(below, y + lines * step)
    return blocks


def _background(page: Page, blocks: list[_Block], observed: Row) -> Image.Image:
    """What does not move: titles and legends."""
    width = max(block.legend[0] + page.legend_width(block.rows[0].style) for block in blocks)
    canvas = page.blank(width, max(block.legend[2] for block in blocks) + page.line)
    for block in blocks:
        for row, corner in zip(block.rows, block.corners, strict=True):
            page.write_title(canvas, *corner, row.label)
        style = block.rows[0].style
        missing = any(row.has_missing for row in (observed, *block.rows) if row.style == style)
        page.put_legend(canvas, *block.legend, style, missing)
    return canvas
