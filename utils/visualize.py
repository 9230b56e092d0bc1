"""Forecasts drawn in the exact colours of a radar legend: a strip of lead times (PNG), an animation (GIF).

A picture is drawn as palette indices in an 8-bit image that receives its colours when it is saved, so that no
colour is ever blended or dithered. The first indices run from black ink to white paper: smooth text blends
along them.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from einops import rearrange, repeat
from numpy.typing import ArrayLike
from PIL import Image, ImageColor, ImageDraw, ImageFont

from utils.errors import InputError

GREYS = 16  # palette indices 0 to 15: from black to white
INK, OUTLINE, PAPER = 0, 9, GREYS - 1
MISSING, HATCH = GREYS, GREYS + 1
MISSING_COLORS = ("#dcdcdc", "#7d7d7d")
FIRST_COLOR = GREYS + len(MISSING_COLORS)  # the colours of the style follow
MAX_COLORS = 256 - FIRST_COLOR

PANEL_SIZE = 200  # pixels that the sides of a panel have at least
STRIP_COLUMNS = 7  # lead times that a strip shows at most
FRAME_MS = 200  # how long an animation shows a frame,
PAUSE_MS = 1000  # and how long the last input and the last forecast


@dataclass(frozen=True)
class Style:
    """How the frames of a data source are painted.

    A frame value `x` in [0, 1] stands for `scale * x` in `units`. `colors[i]` paints values in
    `[bounds[i], bounds[i + 1])`; the outermost colours also paint what lies beyond the outermost bounds.
    """

    scale: float
    bounds: tuple[float, ...]  # ascending, in `units`
    colors: tuple[str, ...]  # "#rrggbb"
    units: str
    interval: float  # minutes between frames

    def __post_init__(self):
        if len(self.colors) != len(self.bounds) - 1 or len(self.colors) > MAX_COLORS:
            raise ValueError(
                f"{len(self.bounds)} bounds and {len(self.colors)} colours make no style: "
                f"give one colour between each two neighbouring bounds, {MAX_COLORS} at most."
            )


def render(frames: ArrayLike, style: Style) -> np.ndarray:
    """Paint frames `(..., H, W)` in [0, 1] as uint8 RGB `(..., H, W, 3)`; NaN (missing data) becomes grey."""
    return _palette(style)[_color_index(frames, style)]


def draw_strip(path: str | Path, inputs: ArrayLike, rows: Mapping[str, ArrayLike], style: Style) -> None:
    """Write a PNG with the inputs on top, then one row per forecast and one column per lead time.

    Of each sequence it shows at most seven frames, evenly spread, the first and the last among them.

    Args:
        path: the PNG file to write.
        inputs: the observed frames `(T_in, H, W)` in [0, 1], NaN where data are missing.
        rows: label -> frames `(T_out, H, W)`, from top to bottom, such as "Target", "Trend", "DiffCast".
        style: colours, units and time step.

    Raises:
        InputError: `path` cannot be written.
    """
    inputs, forecasts = _checked_indices(inputs, rows, style)
    shown_in, shown_out = _spread(len(inputs)), _spread(forecasts.shape[1])
    labels = ["Input", *rows]
    panels = [inputs[shown_in], *forecasts[:, shown_out]]

    page = _Page(inputs.shape[1:], style, text_share=10)
    left = page.margin + page.text_width(labels) + page.margin
    right = left + max(len(shown_in), len(shown_out)) * page.column_step - page.gap
    tops = [page.line, *(2 * page.line + row * page.row_step for row in range(1, len(labels)))]
    bottom = tops[-1] + page.height

    canvas = page.blank(right + page.legend_width, bottom + page.margin)
    for top, label, frames in zip(tops, labels, panels, strict=True):
        page.write(canvas, left - page.margin, top + page.height // 2, label, "rm")
        page.put_panels(canvas, left, top, frames)
    page.write_titles(canvas, left, tops[0], [_lead(i + 1 - len(inputs), style) for i in shown_in])
    page.write_titles(canvas, left, tops[1], [_lead(i + 1, style) for i in shown_out])
    page.put_legend(canvas, right + page.margin, tops[0], bottom, _any_missing(inputs, forecasts))
    _save(path, [canvas], style, format="PNG", optimize=True)


def draw_animation(path: str | Path, inputs: ArrayLike, rows: Mapping[str, ArrayLike], style: Style) -> None:
    """Write an endless GIF with one panel per forecast; each plays the inputs, then its forecast.

    The time relative to the last input stands below the panels; the animation rests on the last input and on
    the last forecast.

    Args:
        path: the GIF file to write.
        inputs: the observed frames `(T_in, H, W)` in [0, 1], NaN where data are missing.
        rows: label -> frames `(T_out, H, W)`, from left to right, such as "Target", "Trend", "DiffCast".
        style: colours, units and time step.

    Raises:
        InputError: `path` cannot be written.
    """
    inputs, forecasts = _checked_indices(inputs, rows, style)
    page = _Page(inputs.shape[1:], style, text_share=14)
    left, top = page.margin, page.line
    right, bottom = left + len(rows) * page.column_step - page.gap, top + page.height

    background = page.blank(right + page.legend_width, bottom + page.line)
    page.write_titles(background, left, top, list(rows))
    page.put_legend(background, right + page.margin, top, bottom, _any_missing(inputs, forecasts))

    observed = repeat(inputs, "t h w -> t panel h w", panel=len(rows))
    forecast = rearrange(forecasts, "panel t h w -> t panel h w")
    canvases = []
    for step, panels in enumerate(np.concatenate([observed, forecast]), start=1 - len(inputs)):
        canvas = background.copy()
        page.put_panels(canvas, left, top, panels)
        phase = "forecast" if step > 0 else "observed"
        page.write(canvas, left, bottom + page.line // 2, f"{_lead(step, style)}  {phase}", "lm")
        canvases.append(canvas)

    durations = [FRAME_MS] * len(canvases)
    durations[len(inputs) - 1] = durations[-1] = PAUSE_MS
    _save(path, canvases, style, format="GIF", save_all=True, duration=durations, loop=0)


class _Page:
    """Places panels, text and the legend on 8-bit canvases of palette indices.

    All sizes are in pixels and follow from the frame size `(H, W)`. Small frames are enlarged by a whole
    factor, so that their pixels stay squares of one size. The text is as high as a panel's width / `text_share`.
    """

    def __init__(self, frame_size: tuple[int, int], style: Style, text_share: int):
        self.style = style
        self.zoom = max(1, -(-PANEL_SIZE // min(frame_size)))
        self.height, self.width = (self.zoom * size for size in frame_size)
        self.text_size = min(max(self.width // text_share, 12), 36)
        font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        self.font = ImageFont.truetype(font, self.text_size)
        self.line = 2 * self.text_size
        self.margin = self.text_size
        self.gap = self.text_size // 3
        self.column_step = self.width + self.gap
        self.row_step = self.height + self.gap
        self.bounds = [f"{bound:g}" for bound in style.bounds[1:-1]]
        beside_bar = self.text_size + self.gap + self.text_width(["no data", *self.bounds])
        self.legend_width = 2 * self.margin + max(beside_bar, self.text_width([style.units]))

    def text_width(self, texts: list[str]) -> int:
        return max(int(self.font.getlength(text)) + 1 for text in texts)

    def blank(self, width: int, height: int) -> Image.Image:
        return Image.new("L", (width, height), PAPER)

    def write(self, canvas: Image.Image, x: int, y: int, text: str, anchor: str) -> None:
        ImageDraw.Draw(canvas).text((x, y), text, fill=INK, font=self.font, anchor=anchor)

    def write_titles(self, canvas: Image.Image, left: int, top: int, titles: list[str]) -> None:
        """Write a title above each panel of the row that starts at `left`, `top`."""
        for column, title in enumerate(titles):
            center = left + column * self.column_step + self.width // 2
            self.write(canvas, center, top - self.line // 2, title, "mm")

    def put_panels(self, canvas: Image.Image, left: int, top: int, frames: np.ndarray) -> None:
        """Place frames of palette indices `(N, H, W)` side by side."""
        panels = repeat(frames, "n h w -> n (h y) (w x)", y=self.zoom, x=self.zoom)
        for column, panel in enumerate(panels):
            self.put_framed(canvas, left + column * self.column_step, top, panel)

    def put_framed(self, canvas: Image.Image, x: int, y: int, panel: np.ndarray) -> None:
        """Place palette indices `(height, width)`, missing data hatched, within a thin outline."""
        height, width = panel.shape
        row, column = np.indices(panel.shape)
        hatched = np.where((panel == MISSING) & ((row + column) % 8 < 2), np.uint8(HATCH), panel)
        ImageDraw.Draw(canvas).rectangle((x - 1, y - 1, x + width, y + height), outline=OUTLINE)
        canvas.paste(Image.fromarray(hatched), (x, y))

    def put_legend(self, canvas: Image.Image, x: int, top: int, bottom: int, missing: bool) -> None:
        """Place the colour bar between two heights, low values at the bottom, the units above it."""
        self.write(canvas, x, top - self.line // 2, self.style.units, "lm")
        size, beside = self.text_size, x + self.text_size + self.gap
        if missing:
            self.put_framed(canvas, x, bottom - size, np.full((size, size), MISSING, dtype=np.uint8))
            self.write(canvas, beside, bottom - size // 2, "no data", "lm")
            bottom -= self.line
        edges = np.linspace(bottom, top, len(self.style.bounds)).round().astype(int)
        bar = np.empty((bottom - top, size), dtype=np.uint8)
        for color, (low, high) in enumerate(pairwise(edges - top), start=FIRST_COLOR):
            bar[high:low] = color
        self.put_framed(canvas, x, top, bar)
        every = -(-self.line * len(edges) // (2 * (bottom - top)))  # leave out labels where they would overlap
        for edge, label in list(zip(edges[1:-1].tolist(), self.bounds, strict=True))[::every]:
            self.write(canvas, beside, edge, label, "lm")


def _checked_indices(inputs: ArrayLike, rows: Mapping[str, ArrayLike], style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Palette indices of the inputs `(T_in, H, W)` and of all rows `(rows, T_out, H, W)`."""
    inputs = _color_index(inputs, style)
    forecasts = np.stack([_color_index(frames, style) for frames in rows.values()])
    if inputs.ndim != 3 or forecasts.ndim != 4 or inputs.shape[1:] != forecasts.shape[2:]:
        raise ValueError(f"inputs {inputs.shape} and rows {forecasts.shape[1:]} must be frames (T, H, W) of one size")
    return inputs, forecasts


def _color_index(frames: ArrayLike, style: Style) -> np.ndarray:
    # In float32, as scores compare with thresholds: a byte / 255 then reaches exactly the bound it stands on.
    values = np.asarray(frames, dtype=np.float32) * np.float32(style.scale)
    index = FIRST_COLOR + np.searchsorted(np.float32(style.bounds[1:-1]), values, side="right")
    return np.where(np.isnan(values), MISSING, index).astype(np.uint8)


def _palette(style: Style) -> np.ndarray:
    greys = repeat(np.linspace(0, 255, GREYS), "grey -> grey rgb", rgb=3)
    colors = [ImageColor.getrgb(color) for color in (*MISSING_COLORS, *style.colors)]
    return np.concatenate([greys, colors]).astype(np.uint8)


def _any_missing(*indices: np.ndarray) -> bool:
    return any((index == MISSING).any() for index in indices)


def _spread(length: int) -> np.ndarray:
    """Indices of at most `STRIP_COLUMNS` evenly spread frames, the first and the last always among them."""
    count = min(length, STRIP_COLUMNS)
    return np.arange(count) * (length - 1) // max(count - 1, 1)


def _lead(step: int, style: Style) -> str:
    return f"{step * style.interval:+g} min" if step else "0 min"


def _save(path: str | Path, canvases: list[Image.Image], style: Style, **options) -> None:
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    for canvas in canvases:
        canvas.putpalette(_palette(style).tobytes())
    try:
        canvases[0].save(partial, append_images=canvases[1:], **options)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror}); choose a writable file in a folder that exists"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
