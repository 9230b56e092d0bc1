"""The animation: a panel per forecast."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from utils.files import replacing
from utils.visualize.page import HATCH, Page
from utils.visualize.style import MISSING, Coordinates, Row, Style, Styled, rows_of

COLUMNS = 4  # panels side by side at most
FRAME_MS = 200  # how long a frame is shown,
PAUSE_MS = 1000  # and how long the last input and the last forecast
GREYS = 16  # shades of text, so that the colours of a picture fit into the 256 of a GIF


def draw_animation(
    path: str | Path,
    inputs: ArrayLike,
    rows: Mapping[str, ArrayLike | Styled],
    style: Style,
    coordinates: Coordinates,
) -> Figure:
    """Write an endless GIF with one panel per forecast.

    Each panel plays the inputs, then its forecast. The time stands below the panels. The animation rests on the last
    input and on the last forecast. Panels in another style than the inputs stay empty until the forecast begins.
    Returns the last picture as a figure.

    Args:
        path: the GIF file to write.
        inputs: the observed frames `(T_in, H, W)` in [0, 1], NaN where data are missing.
        rows: label -> frames `(T_out, H, W)` in reading order, such as "Target", "Trend", "DiffCast".
        style: colours and units of the inputs, and of each row that is not `Styled` otherwise.
        coordinates: time step, size of pixels, and date if there is one.

    Raises:
        InputError: `path` cannot be written.
    """
    observed, *rows = rows_of(inputs, rows, style)
    page = Page(observed.frames.shape[1:], 14, [row.style.units for row in rows], coordinates)
    blocks = _arrange(page, rows)
    width = max(block.legend[0] + page.legend_width(block.rows[0].style) for block in blocks)
    foot = max(block.legend[2] for block in blocks) + page.line
    figure = page.open(width, foot + page.line)
    for block in blocks:
        _draw_block(page, block, observed)
    page.put_scale(page.margin, foot - page.line // 2)
    pictures = _play(page, blocks, observed, coordinates, foot + page.line // 2)
    first, *others = _indexed(pictures, [row.style for row in (observed, *rows)])
    for row, corner in _panels(blocks):
        page.put(*corner, page.panel(row.frames[-1], row.style))

    durations = [FRAME_MS] * (1 + len(others))
    durations[len(observed.frames) - 1] = durations[-1] = PAUSE_MS
    with replacing(path) as temporary:
        first.save(temporary, format="GIF", append_images=others, save_all=True, duration=durations, loop=0)
    return figure


class _Block(NamedTuple):
    """Panels of one style, with their legend on the right."""

    rows: list[Row]
    corners: list[tuple[int, int]]  # upper left, (x, y)
    legend: tuple[int, int, int]  # x, top, bottom


def _arrange(page: Page, rows: list[Row]) -> list[_Block]:
    """Group rows of one style into blocks, `COLUMNS` panels a line."""
    limit = COLUMNS * page.column_step + max(page.legend_width(row.style) for row in rows)
    blocks, x, y, below = [], 0, 0, 0
    for style, run in groupby(rows, key=lambda row: row.style):
        run = list(run)
        lines = -(-len(run) // COLUMNS)
        columns = -(-len(run) // lines)
        width = columns * page.column_step + page.legend_width(style)
        if x and x + width > limit:
            x, y = 0, below
        left, top, step = page.margin + x, y + page.titles, page.titles + page.height
        corners = [(left + i % columns * page.column_step, top + i // columns * step) for i in range(len(run))]
        blocks.append(_Block(run, corners, (left + columns * page.column_step, top, y + lines * step)))
        x, below = x + width, max(below, y + lines * step)
    return blocks


def _draw_block(page: Page, block: _Block, observed: Row) -> None:
    """Draw titles, legend and empty panels."""
    style = block.rows[0].style
    missing = any(row.has_missing for row in (observed, *block.rows) if row.style == style)
    page.put_legend(*block.legend, style, missing)
    for row, corner in zip(block.rows, block.corners, strict=True):
        page.write_title(*corner, row.label)
        page.put(*corner, np.full((page.height, page.width, 3), 255, dtype=np.uint8))


def _panels(blocks: list[_Block]) -> list[tuple[Row, tuple[int, int]]]:
    """All rows with the corners of their panels."""
    return [panel for block in blocks for panel in zip(block.rows, block.corners, strict=True)]


def _play(page: Page, blocks: list[_Block], observed: Row, coordinates: Coordinates, foot: int) -> Iterator[np.ndarray]:
    """The pictures, uint8 `(height, width, 3)`, with the time at `foot`."""
    canvas = page.figure.canvas
    canvas.draw()
    background = canvas.copy_from_bbox(page.figure.bbox)
    time = page.write(page.margin, foot, "")
    for step in range(observed.start, len(blocks[0].rows[0].frames) + 1):
        phase = "observed" if step <= 0 else "forecast"
        time.set_text(", ".join([*coordinates.valid(step, "%Y-%m-%d %H:%M"), coordinates.lead(step), phase]))
        canvas.restore_region(background)
        page.figure.draw_artist(time)
        picture = np.array(canvas.buffer_rgba())[..., :3]
        for row, (x, y) in _panels(blocks):
            shown = observed if step <= 0 else row
            if shown.style == row.style:
                picture[y : y + page.height, x : x + page.width] = page.panel(shown.frames[step - 1], row.style)
        yield picture


def _indexed(pictures: Iterable[np.ndarray], styles: Sequence[Style]) -> list[Image.Image]:
    """The pictures with one palette, exact but for greys of text."""
    greys = np.linspace(0, 255, GREYS)[:, None].repeat(3, axis=1)
    palette = np.unique(_packed(np.concatenate([greys, [MISSING, (HATCH,) * 3], *(style.rgb for style in styles)])))
    if len(palette) > 256:
        raise ValueError(f"{len(palette)} colours do not fit into a GIF, which has 256 at most.")
    nearest = np.searchsorted(palette, np.rint(np.arange(256) / 17).astype(np.int32) * 0x111111)  # of all greys
    images = []
    for picture in pictures:
        packed = _packed(picture)
        index = np.searchsorted(palette, packed)
        index = np.where(palette[index] == packed, index, nearest[picture[..., 0]])
        images.append(Image.fromarray(index.astype(np.uint8)))
        images[-1].putpalette([channel for color in palette.tolist() for channel in color.to_bytes(3, "big")])
    return images


def _packed(rgb: np.ndarray) -> np.ndarray:
    """One number from red, green and blue."""
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue
