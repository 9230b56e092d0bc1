"""The page of a picture: sizes, panels, text and legends."""

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from einops import repeat
from PIL import Image, ImageDraw, ImageFont

from utils.files import replacing
from utils.visualize.style import HATCH, INK, MISSING, OUTLINE, PAPER, Palette, Style

PANEL_SIZE = 200  # pixels that the sides of a panel have at least
LEGEND_PANELS = 4  # height of a legend in panels at most


class Page:
    """Places panels, text and legends on 8-bit canvases of palette indices.

    All sizes are in pixels and follow from the frame size `(H, W)`. Small frames are enlarged by a whole
    factor, so that their pixels stay squares of one size. The text is as high as a panel's width / `text_share`.
    """

    def __init__(self, palette: Palette, frame_size: tuple[int, int], text_share: int):
        self.palette = palette
        self.zoom = max(1, -(-PANEL_SIZE // min(frame_size)))
        self.height, self.width = (self.zoom * size for size in frame_size)
        self.text_size = min(max(self.width // text_share, 12), 36)
        font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        self.font = ImageFont.truetype(font, self.text_size)
        self.line = 2 * self.text_size
        self.margin = self.text_size
        self.gap = self.text_size // 3
        self.column_step = self.width + self.gap

    def text_width(self, *texts: str) -> int:
        return max(int(self.font.getlength(text)) + 1 for text in texts)

    def legend_width(self, style: Style) -> int:
        """Width of `put_legend` with a margin on either side."""
        beside_bar = self.text_size + self.gap + self.text_width("no data", *_bound_labels(style))
        return 2 * self.margin + max(beside_bar, self.text_width(style.units))

    def blank(self, width: int, height: int) -> Image.Image:
        return Image.new("L", (width, height), PAPER)

    def write(self, canvas: Image.Image, x: int, y: int, text: str, anchor: str) -> None:
        ImageDraw.Draw(canvas).text((x, y), text, fill=INK, font=self.font, anchor=anchor)

    def write_title(self, canvas: Image.Image, x: int, y: int, title: str) -> None:
        """Write a title above the panel at `x`, `y`, cut where it would reach into the neighbour's."""
        while self.text_width(title) > self.width:
            title = title[:-2] + "…"
        self.write(canvas, x + self.width // 2, y - self.line // 2, title, "mm")

    def put_panel(self, canvas: Image.Image, x: int, y: int, frame: np.ndarray) -> None:
        """Place a frame of palette indices `(H, W)`, enlarged."""
        self._put_framed(canvas, x, y, repeat(frame, "h w -> (h y) (w x)", y=self.zoom, x=self.zoom))

    def put_legend(self, canvas: Image.Image, x: int, top: int, bottom: int, style: Style, missing: bool) -> None:
        """Place a style's colour bar between two heights, low values at the bottom, the units above it."""
        bottom = min(bottom, top + LEGEND_PANELS * self.height)
        self.write(canvas, x, top - self.line // 2, style.units, "lm")
        size, beside = self.text_size, x + self.text_size + self.gap
        if missing:
            self._put_framed(canvas, x, bottom - size, np.full((size, size), MISSING, dtype=np.uint8))
            self.write(canvas, beside, bottom - size // 2, "no data", "lm")
            bottom -= self.line
        edges = np.linspace(bottom, top, len(style.bounds)).round().astype(int)
        bar = np.empty((bottom - top, size), dtype=np.uint8)
        for color, (low, high) in enumerate(pairwise(edges - top), start=self.palette.first[style]):
            bar[high:low] = color
        self._put_framed(canvas, x, top, bar)
        every = -(-self.line * len(edges) // (2 * (bottom - top)))  # leave out labels where they would overlap
        for edge, label in list(zip(edges[1:-1].tolist(), _bound_labels(style), strict=True))[::every]:
            self.write(canvas, beside, edge, label, "lm")

    def _put_framed(self, canvas: Image.Image, x: int, y: int, panel: np.ndarray) -> None:
        """Place palette indices `(height, width)`, missing data hatched, within a thin outline."""
        height, width = panel.shape
        row, column = np.indices(panel.shape)
        hatched = np.where((panel == MISSING) & ((row + column) % 8 < 2), np.uint8(HATCH), panel)
        ImageDraw.Draw(canvas).rectangle((x - 1, y - 1, x + width, y + height), outline=OUTLINE)
        canvas.paste(Image.fromarray(hatched), (x, y))


def _bound_labels(style: Style) -> list[str]:
    return [f"{bound:g}" for bound in style.bounds[1:-1]]


def save(path: str | Path, canvases: list[Image.Image], palette: Palette, **options) -> None:
    """Write one picture, or the frames of an animation, with the palette's colours.

    Raises `InputError` if that fails; what was at `path` then stays.
    """
    for canvas in canvases:
        canvas.putpalette(palette.rgb.tobytes())
    with replacing(path) as temporary:
        canvases[0].save(temporary, append_images=canvases[1:], **options)
