"""The page of a picture, on which everything is placed by pixels."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from einops import repeat
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import ImageFont

from utils.visualize.style import MISSING, Coordinates, Style, render

DPI = 64  # a power of two: sizes in pixels are exact in inches
PANEL_SIZE = 200  # pixels that the sides of a panel have at least
LEGEND_PANELS = 4  # height of a legend in panels at most
OUTLINE, HATCH = 0x99, 0x7D  # greys


def panel_size(frame_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of the panel of a frame `(H, W)`."""
    zoom = max(1, -(-PANEL_SIZE // min(frame_size)))
    return zoom * frame_size[0], zoom * frame_size[1]


class Page:
    """Places panels, text and legends.

    All sizes are in pixels from the upper left corner and follow from the frame size `(H, W)`. Small frames are
    enlarged by an integer factor. The text is as high as a panel's width / `text_share`. `titles` are what will stand
    above panels and legends.
    """

    def __init__(self, frame_size: tuple[int, int], text_share: int, titles: Iterable[str], coordinates: Coordinates):
        self.height, self.width = panel_size(frame_size)
        self.zoom = self.height // frame_size[0]
        self.coordinates = replace(coordinates, pixel_km=coordinates.pixel_km / self.zoom)  # of a panel
        lines = self.coordinates.lines((self.height, self.width))
        ink = np.full(lines.shape, HATCH, np.uint8)
        self.over = np.ma.array(ink, mask=~lines) if coordinates.map is None else coordinates.map
        self.text_size = min(max(self.width // text_share, 12), 36)
        self.font = ImageFont.truetype(
            Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), self.text_size
        )
        self.line = 2 * self.text_size
        further = max(title.count("\n") for title in titles)
        self.titles = self.line + further * self.text_size * 5 // 4  # height of titles and units
        self.margin = self.text_size
        self.gap = self.text_size // 3
        self.column_step = self.width + self.gap

    def open(self, width: int, height: int) -> Figure:
        """Start an empty figure. The other methods draw on the last one."""
        self.figure = Figure((width / DPI, height / DPI), dpi=DPI)
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        self.axes.set_axis_off()
        return self.figure

    def text_width(self, *texts: str) -> int:
        """The width of the longest line."""
        return max(math.ceil(self.font.getlength(line)) for text in texts for line in text.split("\n"))

    def legend_width(self, style: Style) -> int:
        """Width of `put_legend` with a margin on either side."""
        bar = self.text_size + self.gap + self.text_width("no data", *style.labels)
        return 2 * self.margin + max(bar, self.text_width(style.units))

    def write(self, x: float, y: float, text: str, align: str = "left", valign: str = "center") -> Text:
        """Write text at a point."""
        size = self.text_size * 72 / DPI  # in points
        return self.axes.text(
            x, y, text, size=size, family="DejaVu Sans", ha=align, va=valign, linespacing=1.1, parse_math=False
        )

    def write_title(self, x: int, y: int, title: str) -> None:
        """Write a title above the panel at `x`, `y`, shortened to fit."""
        while self.text_width(title) > self.width:
            title = title[:-2] + "…"
        self.write(x + self.width / 2, y - self.gap, title, "center", "bottom")

    def put(self, x: int, y: int, rgb: np.ndarray) -> None:
        """Place a picture, uint8 `(height, width, 3)`, within a thin outline."""
        height, width = rgb.shape[:2]
        outlined = np.pad(rgb, ((1, 1), (1, 1), (0, 0)), constant_values=OUTLINE)
        extent = (x - 1, x + width + 1, y + height + 1, y - 1)
        self.axes.imshow(outlined, extent=extent, interpolation="nearest", aspect="auto")

    def panel(self, frame: np.ndarray, style: Style) -> np.ndarray:
        """Paint a frame `(H, W)` as uint8 RGB of a panel's size."""
        rgb = repeat(render(frame, style), "h w rgb -> (h y) (w x) rgb", y=self.zoom, x=self.zoom)
        if np.isnan(frame).any():
            rgb = _hatched(rgb, repeat(np.isnan(frame), "h w -> (h y) (w x)", y=self.zoom, x=self.zoom))
        rgb[~self.over.mask] = self.over.compressed()[:, None]
        return rgb

    def put_legend(self, x: int, top: int, bottom: int, style: Style, missing: bool) -> None:
        """Place a colour bar between two heights, with the units above."""
        bottom = min(bottom, top + LEGEND_PANELS * self.height)
        self.write(x, top - self.gap, style.units, valign="bottom")
        size, right = self.text_size, x + self.text_size + self.gap
        if missing:
            square = np.ones((size, size), dtype=bool)
            self.put(x, bottom - size, _hatched(np.full((size, size, 3), MISSING, np.uint8), square))
            self.write(right, bottom - size / 2, "no data")
            bottom -= self.line
        edges = np.linspace(bottom, top, len(style.bounds)).round().astype(int)
        bar = np.repeat(style.rgb[::-1], -np.diff(edges)[::-1], axis=0)
        self.put(x, top, np.repeat(bar[:, None], size, axis=1))
        every = -(-self.line * len(edges) // (2 * (bottom - top)))  # leave out labels where they would overlap
        for edge, label in list(zip(edges[1:-1], style.labels, strict=True))[::every]:
            self.write(right, edge, label)

    def put_scale(self, x: int, y: int) -> None:
        """Place a scale bar, and say how far apart the lines of the grid are.

        The bar is at most half as wide as a panel.
        """
        pixel_km = self.coordinates.pixel_km
        half = pixel_km * self.width / 2
        power = 10.0 ** math.floor(math.log10(half))
        length = power * max(digit for digit in (1, 2, 5) if digit * power <= half)
        pixels, thickness = round(length / pixel_km), max(2, self.text_size // 5)
        self.put(x, y - thickness // 2, np.zeros((thickness, pixels, 3), dtype=np.uint8))
        grid = f", lines every {self.coordinates.spacing(self.width):g} km" if self.coordinates.grid else ""
        self.write(x + pixels + self.gap, y, f"{length:g} km{grid}")


def _hatched(rgb: np.ndarray, missing: np.ndarray) -> np.ndarray:
    row, column = np.indices(missing.shape)
    return np.where((missing & ((row + column) % 8 < 2))[..., None], np.uint8(HATCH), rgb)
