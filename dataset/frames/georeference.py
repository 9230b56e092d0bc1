"""The coordinate reference system and the coordinates of a frame."""

import re
import warnings
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from dataset.frames.packages import needed

KM_PER_DEGREE = 111.195  # of a great circle
# others, such as nadgrids, may name files
PROJ_KEYS = "proj|lat_[012]|lat_ts|lon_0|[xy]_0|k_0|k|a|b|R|rf|ellps|datum|towgs84|units|no_defs|type|wktext"
PROJ_PART = re.compile(rf"\+({PROJ_KEYS})(=[-+\w.,]+)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Georeference:
    """Coordinates of the pixel centres of a frame `(H, W)`.

    They are metres, or degrees if the system is geographic.
    """

    crs: str | None  # coordinate reference system as WKT or PROJ string; None: unknown
    x: np.ndarray  # `(W,)` from west to east
    y: np.ndarray  # `(H,)` from north to south
    geographic: bool = False

    @classmethod
    def of_corner(
        cls,
        crs: str | None,
        corner: tuple[float, float],  # x and y of the outer upper left corner
        pixel: tuple[float, float],  # width and height
        shape: tuple[int, int],  # height and width in pixels
        geographic: bool = False,
    ) -> "Georeference":
        """The coordinates of equal pixels below and right of a corner."""
        (left, top), (width, height) = corner, pixel
        if not np.isfinite([left, top, width, height]).all() or min(width, height) <= 0:
            raise ValueError(f"its pixels of {width:g} x {height:g} at {left:g}, {top:g} are not possible")
        x, y = left + width * (np.arange(shape[1]) + 0.5), top - height * (np.arange(shape[0]) + 0.5)
        return cls(crs, x, y, geographic)

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """The outer edges of the frame: west, east, south and north."""
        half_x, half_y = (abs(float(line[-1] - line[0])) / max(1, len(line) - 1) / 2 for line in (self.x, self.y))
        return self.x[0] - half_x, self.x[-1] + half_x, self.y[-1] - half_y, self.y[0] + half_y

    @property
    def extent_km(self) -> float:
        """Width of the frame; in degrees, at its middle latitude."""
        pixels = len(self.x)
        width = abs(float(self.x[-1] - self.x[0])) * pixels / max(1, pixels - 1)
        if not self.geographic:
            return width / 1000
        return width * KM_PER_DEGREE * float(np.cos(np.radians(self.y.mean())))

    def resized(self, shape: tuple[int, int]) -> "Georeference":
        """The coordinates of `(height, width)` pixels that cover the same frame."""
        y, x = (
            np.interp((np.arange(pixels) + 0.5) * len(line) / pixels - 0.5, np.arange(len(line)), line)
            for line, pixels in zip((self.y, self.x), shape, strict=True)
        )
        return replace(self, x=x, y=y)

    def degrees(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitudes and longitudes `(H, W)` of the pixel centres (WGS 84)."""
        pyproj = needed("pyproj", "the latitude and longitude of a pixel")
        to_degrees = pyproj.Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True)
        longitude, latitude = to_degrees.transform(*np.meshgrid(self.x, self.y))
        return latitude, longitude

    def grid_mapping(self) -> dict:
        """Attributes of a grid mapping by the CF conventions, among them `crs_wkt`."""
        pyproj = needed("pyproj", "a grid mapping")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # parameters that CF has no names for stay in crs_wkt
            attributes = pyproj.CRS(self.crs).to_cf()
        if attributes.get("grid_mapping_name") == "polar_stereographic":  # CF wants the pole, which pyproj leaves out
            pole = np.copysign(90.0, attributes.get("standard_parallel", 90.0))
            attributes.setdefault("latitude_of_projection_origin", float(pole))
        return attributes


def is_proj_string(text: str) -> bool:
    """Whether a text is a PROJ string that names no files."""
    return bool(text) and all(map(PROJ_PART.fullmatch, text.split()))


@lru_cache
def projected(crs: str, longitude: float, latitude: float) -> tuple[float, float] | None:
    """Project a point in degrees, None if PROJ does not know the projection."""
    pyproj = needed("pyproj", "the position of a frame")
    try:
        return pyproj.Proj(crs)(longitude, latitude)
    except pyproj.exceptions.CRSError:
        return None


@lru_cache
def wkt_of_cf(attributes: tuple[tuple[str, Hashable], ...]) -> str | None:
    """WKT of a grid mapping by CF, None if it is unknown."""
    pyproj = needed("pyproj", "a grid mapping")
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in attributes}
    try:
        return pyproj.CRS.from_cf(values).to_wkt()
    except (
        pyproj.exceptions.CRSError,
        KeyError,
        TypeError,
        ValueError,
    ):  # of odd parameters
        return None
