"""Maps over the panels of pictures: their place, their coastlines, and what happens without cartopy or a projection."""

import logging

import cartopy
import numpy as np
import pytest
import shapefile
import torch
from cartopy.io.shapereader import NEShpDownloader
from pyproj import CRS, Transformer

from dataset.frames.georeference import Georeference
from dataset.source import VIL
from diffcast.forecasting import pictures
from diffcast.forecasting.maps import draw_map
from utils.visualize.page import HATCH

pytestmark = pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")
ROTATED = CRS.from_cf(
    {
        "grid_mapping_name": "rotated_latitude_longitude",
        "grid_north_pole_latitude": 39.25,
        "grid_north_pole_longitude": -162.0,
    }
).to_wkt()
DEGREES = Georeference.of_corner("EPSG:4326", (5, 55), (0.05, 0.05), (200, 200), geographic=True)
PLACES = {  # with the steps of their parallels and meridians
    "degrees": (DEGREES, 2, 2),
    "degrees of an unknown ellipsoid": (Georeference(None, DEGREES.x, DEGREES.y, True), 2, 2),
    "across 180": (Georeference.of_corner("EPSG:4326", (175, -13), (0.05, 0.05), (200, 200), True), 5, 2),
    "east of 180": (Georeference.of_corner("EPSG:4326", (265, 45), (0.05, 0.05), (200, 200), True), 2, 2),
    "rotated pole": (Georeference.of_corner(ROTATED, (-5, 5), (0.05, 0.05), (200, 200), True), 5, 5),
    "polar": (
        Georeference.of_corner(
            "+proj=stere +lat_0=90 +lon_0=25 +lat_ts=60 +R=6371288", (-354e3, -2140e3), (3e3, 3e3), (400, 250)
        ),
        5,
        5,
    ),
}


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    """The folder of cartopy's data, into which nothing may be downloaded."""
    monkeypatch.setitem(cartopy.config, "data_dir", tmp_path)
    monkeypatch.setitem(cartopy.config, "pre_existing_data_dir", tmp_path)
    monkeypatch.setattr(NEShpDownloader, "acquire_resource", lambda *_: pytest.fail("a download started"))
    return tmp_path


def write_line(data, layer, *points):
    """A shapefile of one line."""
    with shapefile.Writer(data / "shapefiles" / "natural_earth" / layer, shapeType=shapefile.POLYLINE) as file:
        file.field("name", "C")
        file.line([points])
        file.record("line")


def off_a_line(degrees, step):
    return abs((degrees + step / 2) % step - step / 2)


@pytest.mark.parametrize("name", PLACES)
def test_parallels_and_meridians_are_where_pyproj_sees_them(name):
    place, parallels, meridians = PLACES[name]
    over = draw_map(place, (len(place.y), len(place.x)))
    row, column = np.nonzero(~over.mask[:-40, 50:] & (over.data[:-40, 50:] == HATCH))  # right of and above labels
    longitude, latitude = Transformer.from_crs(place.crs or "EPSG:4326", "EPSG:4326", always_xy=True).transform(
        place.x[50 + column], place.y[row]
    )
    pixel = 1.2 * np.ptp(latitude) / over[:-40].shape[0]
    near_parallel = off_a_line(latitude, parallels) < pixel
    near_meridian = off_a_line(longitude, meridians) * np.cos(np.radians(latitude)) < pixel
    assert (near_parallel | near_meridian).all()
    assert near_parallel.sum() > 120
    assert near_meridian.sum() > 120


@pytest.mark.parametrize("layer", ["physical/ne_50m_coastline", "cultural/ne_10m_admin_0_boundary_lines_land"])
def test_coastlines_and_borders_are_drawn_where_their_data_are_and_never_downloaded(data, layer):
    without = draw_map(DEGREES, (200, 200))
    assert not list(data.iterdir())
    write_line(data, layer, (10.9, 40), (10.9, 50.5), (30, 50.5))  # columns up to 118, rows from 90
    changed = without.filled(255) != draw_map(DEGREES, (200, 200)).filled(255)
    row, column = np.nonzero(changed)
    assert (abs(column - 118) <= 1)[row > 92].all()
    assert (abs(row - 90) <= 1)[column > 120].all()
    assert changed[90:150].any(axis=1).mean() > 0.9  # parallels lie above it
    (data / "shapefiles" / "natural_earth" / layer).with_suffix(".dbf").unlink()  # as if half copied
    np.testing.assert_array_equal(draw_map(DEGREES, (200, 200)).filled(255), without.filled(255))


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw frames of 900 pixels of 1 km at a place, and return the coordinates of the pictures."""
    found = []
    for draw in ("draw_strip", "draw_animation"):
        monkeypatch.setattr(pictures, draw, lambda *words: found.append(words[-1]))

    def draw(place):
        observed = torch.zeros(1, 1, 900, 450)
        pictures.draw_case(tmp_path, "map", observed, None, {"trend": observed[None]}, VIL, 1.0, grid=True, place=place)
        return found[-1]

    return draw


def place_of(crs):
    return Georeference.of_corner(crs, (0, 0), (1e3, 1e3), (900, 450))


def test_a_map_takes_the_place_of_the_lines_of_km_and_has_the_size_of_a_panel(drawn):
    coordinates = drawn(place_of("EPSG:3035"))
    assert (coordinates.grid, coordinates.map.shape) == (False, (600, 300))  # every third pixel, twice as large


@pytest.mark.parametrize(
    ("place", "hidden", "lines"),
    [
        (None, False, 0),
        (place_of(None), False, 0),
        (place_of("EPSG:3035"), True, 0),
        (place_of("+proj=airy +lat_0=50"), False, 1),  # has no inverse
        (place_of("+proj=geos +h=35785831 +y_0=-5.6e6"), False, 1),  # ends beyond the limb of the earth
    ],
)
def test_frames_that_no_map_can_be_drawn_of_keep_their_lines_of_km(drawn, monkeypatch, caplog, place, hidden, lines):
    caplog.set_level(logging.INFO)
    if hidden:
        monkeypatch.setattr("dataset.frames.packages.find_spec", lambda name: None)
    coordinates = drawn(place)
    assert coordinates.grid
    assert coordinates.map is None
    assert len(caplog.records) == lines
