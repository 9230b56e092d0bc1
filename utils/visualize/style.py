"""From values to colours: styles, and the palette that a picture's styles share."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from einops import repeat
from numpy.typing import ArrayLike
from PIL import ImageColor

GREYS = 16  # palette indices 0 to 15: from black to white
INK, OUTLINE, PAPER = 0, 9, GREYS - 1
MISSING, HATCH = GREYS, GREYS + 1
MISSING_COLORS = ("#dcdcdc", "#7d7d7d")
MAX_COLORS = 256 - GREYS - len(MISSING_COLORS)


@dataclass(frozen=True)
class Style:
    """How frames are painted.

    A frame value `x` in [0, 1] stands for `offset + scale * x` in `units`. `colors[i]` paints values in
    `[bounds[i], bounds[i + 1])`; the outermost colours also paint what lies beyond the outermost bounds.
    """

    scale: float
    bounds: tuple[float, ...]  # ascending, in `units`
    colors: tuple[str, ...]  # "#rrggbb"
    units: str
    interval: float  # minutes between frames
    offset: float = 0.0

    def __post_init__(self):
        if len(self.colors) != len(self.bounds) - 1 or len(self.colors) > MAX_COLORS:
            raise ValueError(
                f"{len(self.bounds)} bounds and {len(self.colors)} colours make no style: "
                f"give one colour between each two neighbouring bounds, {MAX_COLORS} at most."
            )


class Styled(NamedTuple):
    """Frames `(T, H, W)` that are painted in a style of their own."""

    frames: ArrayLike
    style: Style


def render(frames: ArrayLike, style: Style) -> np.ndarray:
    """Paint frames `(..., H, W)` in [0, 1] as uint8 RGB `(..., H, W, 3)`; NaN (missing data) becomes grey."""
    palette = Palette([style])
    return palette.rgb[palette.paint(frames, style)]


class Palette:
    """The colours of one picture: greys for text, two for missing data, then those of each style.

    A picture is drawn as palette indices in an 8-bit image that receives its colours when it is saved, so that no
    colour is ever blended or dithered. The first indices run from black ink to white paper: smooth text blends along
    them.
    """

    def __init__(self, styles: Iterable[Style]):
        self.first: dict[Style, int] = {}  # index of the lowest colour
        colors = list(MISSING_COLORS)
        for style in dict.fromkeys(styles):
            self.first[style] = GREYS + len(colors)
            colors += style.colors
        if GREYS + len(colors) > 256:
            raise ValueError(f"the styles of one picture have {MAX_COLORS} colours together at most.")
        greys = repeat(np.linspace(0, 255, GREYS), "grey -> grey rgb", rgb=3)
        self.rgb = np.concatenate([greys, [ImageColor.getrgb(color) for color in colors]]).astype(np.uint8)

    def paint(self, frames: ArrayLike, style: Style) -> np.ndarray:
        """Palette indices, uint8, of frames of any shape."""
        # In float32, as scores compare with thresholds: a byte / 255 then reaches exactly the bound it stands on.
        values = np.asarray(frames, dtype=np.float32) * np.float32(style.scale)
        steps = np.subtract(style.bounds[1:-1], style.offset).astype(np.float32)
        index = self.first[style] + np.searchsorted(steps, values, side="right")
        return np.where(np.isnan(values), MISSING, index).astype(np.uint8)
