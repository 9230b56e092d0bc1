"""Maps over the panels of a picture, drawn by the optional package cartopy."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cartopy
import numpy as np
import shapely
from cartopy.crs import PlateCarree, Projection
from cartopy.io import Downloader
from cartopy.io.shapereader import Reader
from cartopy.mpl.geoaxes import GeoAxes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from pyproj.exceptions import ProjError

from dataset.frames.georeference import Georeference
from utils.visualize.page import DPI, HATCH

LOG = logging.getLogger(__name__)
DEGREES = PlateCarree()
LAYERS = {("physical", "coastline"): 0x22, ("cultural", "admin_0_boundary_lines_land"): 0x55}  # with their greys
RESOLUTIONS = ("10m", "50m", "110m")  # of Natural Earth, the finest first
SAMPLES = 50  # points along a side of the frame at which its latitude and longitude are computed
TICKS = MaxNLocator(4, steps=[1, 2, 5, 10])  # at most five lines in each direction


def draw_map(place: Georeference, size: tuple[int, int]) -> np.ma.MaskedArray | None:
    """Draw parallels and meridians, and coastlines and borders if their data are on disk.

    Returns grey levels, uint8 `(H, W)` of the size of a panel in pixels, masked where the frame stays visible. Returns
    None, and logs why, if the coordinates of the frame cannot be drawn. Downloads nothing.
    """
    try:
        place = _wrapped(place)
        latitude, longitude = place.resized((SAMPLES, SAMPLES)).degrees()
        if not np.isfinite(latitude + longitude).all():
            raise ProjError("a part of the frame has no latitude and longitude")
        axes = _axes(place, size)
    except ProjError as error:
        LOG.info("pictures have a grid in km, because no map of the frames can be drawn: %s", error)
        return None
    _add_layers(axes, latitude, _turned(longitude), pixel=np.ptp(latitude) / size[0])
    _add_grid(axes, latitude, longitude)
    axes.figure.canvas.draw()
    drawn = np.array(axes.figure.canvas.buffer_rgba())
    return np.ma.array(drawn[..., 0], mask=drawn[..., 3] < 128)


def _wrapped(place: Georeference) -> Georeference:
    """Let longitudes of a grid in degrees be those around its middle."""
    if not place.geographic or (place.crs and Projection(place.crs).is_derived):  # such as a rotated pole
        return place
    return replace(place, crs=f"+proj=longlat +datum=WGS84 +lon_wrap={place.x.mean()}")


def _turned(longitude: np.ndarray, middle: float = 0.0) -> np.ndarray:
    """The same longitudes at most 180 degrees from `middle`."""
    return middle + (longitude - middle + 180) % 360 - 180


def _axes(place: Georeference, size: tuple[int, int]) -> GeoAxes:
    """Axes without a frame that cover a picture of a panel's size."""
    west, east, south, north = place.edges
    projection = Projection(place.crs)
    projection.bounds = place.edges
    projection.threshold = (east - west) / size[1] / 4  # lines bend within a quarter pixel
    figure = Figure((size[1] / DPI, size[0] / DPI), dpi=DPI, facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), projection=projection, facecolor="none", aspect="auto")
    axes.spines["geo"].set_visible(False)
    axes.set(xlim=(west, east), ylim=(south, north))
    return axes


def _add_layers(axes: GeoAxes, latitude: np.ndarray, longitude: np.ndarray, pixel: float) -> None:
    """Draw the layers that are on disk, simplified to the size of a pixel in degrees."""
    box = longitude.min() - 1, max(-90, latitude.min() - 1), longitude.max() + 1, min(90, latitude.max() + 1)
    for layer, grey in LAYERS.items():
        if path := next(_on_disk(*layer), None):
            lines = (shapely.clip_by_rect(line.simplify(pixel), *box) for line in Reader(path, bbox=box).geometries())
            axes.add_geometries(
                [line for line in lines if not line.is_empty],
                DEGREES,
                facecolor="none",
                edgecolor=str(grey / 255),
                linewidth=1,
                antialiased=False,
            )


def _on_disk(category: str, name: str) -> Iterator[Path]:
    """Complete shapefiles of a layer where cartopy would look for them, or download them to."""
    for resolution in RESOLUTIONS:
        loader = Downloader.from_config(("shapefiles", "natural_earth", resolution, category, name))
        words = {"config": cartopy.config, "resolution": resolution, "category": category, "name": name}
        for path in (loader.pre_downloaded_path(words), loader.target_path(words)):
            if path and all(path.with_suffix(suffix).is_file() for suffix in (".shp", ".shx", ".dbf")):
                yield path


def _add_grid(axes: GeoAxes, latitude: np.ndarray, longitude: np.ndarray) -> None:
    """Draw a few parallels and meridians, with labels in the panel at its left and lower edge."""
    longitude = _turned(longitude, longitude[SAMPLES // 2, SAMPLES // 2])
    parallels, meridians = (TICKS.tick_values(line.min(), line.max()) for line in (latitude, longitude))
    lines = axes.gridlines(
        xlocs=np.unique(_turned(meridians)),
        ylocs=parallels[abs(parallels) <= 90],
        draw_labels={"left": "y", "bottom": "x"},
        color=str(HATCH / 255),
        linewidth=1,
        antialiased=False,
        x_inline=False,
        y_inline=False,
        xpadding=-4,
        ypadding=-4,
        rotate_labels=False,
    )
    pixels = min(max(axes.bbox.width / 18, 10), 20)
    text = {"size": pixels * 72 / DPI, "path_effects": [withStroke(linewidth=3, foreground="white")]}
    lines.xlabel_style = lines.ylabel_style = text
