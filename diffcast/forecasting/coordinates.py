"""Coordinates of forecasts in space and time by the CF conventions.

https://cfconventions.org/Data/cf-conventions/cf-conventions-1.8/cf-conventions.html
"""

from datetime import timedelta

import numpy as np

from dataset.frames.archive.names import seconds
from dataset.frames.config import FramesConfig
from dataset.frames.georeference import Georeference
from dataset.frames.latest import Latest
from utils.netcdf import Variable

EPOCH = {"units": "seconds since 1970-01-01 00:00:00", "calendar": "standard"}
WINDOWS = (30, 60, 100)  # minutes from the newest frame, for the probability that it rains at any time in them


def space(newest: Latest, config: FramesConfig) -> tuple[dict[str, Variable], dict[str, str]]:
    """Coordinates of the pixels, and the attributes with which variables refer to them.

    y and x are the last two dimensions of a frame, whatever their names. Raises `InputError` if a package is missing.
    """
    place = newest.georeference
    if place is None:
        return _distances(newest, config), {}
    if place.geographic:
        y = axis("latitude", place.y, "latitude", "degrees_north", "latitude", axis="Y")
        x = axis("longitude", place.x, "longitude", "degrees_east", "longitude", axis="X")
        return _mapped({"latitude": y, "longitude": x}, place)
    y = axis("y", place.y, "projection_y_coordinate", "m", "y coordinate of projection", axis="Y")
    x = axis("x", place.x, "projection_x_coordinate", "m", "x coordinate of projection", axis="X")
    if place.crs is None:
        return {"y": y, "x": x}, {}
    latitude, longitude = (degrees.astype(np.float32) for degrees in place.degrees())  # 1 m at most
    plane = {
        "latitude": Variable(("y", "x"), latitude, _named("latitude", "degrees_north", "latitude")),
        "longitude": Variable(("y", "x"), longitude, _named("longitude", "degrees_east", "longitude")),
    }
    variables, references = _mapped({"y": y, "x": x}, place)
    return variables | plane, references | {"coordinates": "latitude longitude"}


def _mapped(axes: dict[str, Variable], place: Georeference) -> tuple[dict[str, Variable], dict[str, str]]:
    """Axes with a grid mapping, if the reference system is known."""
    if place.crs is None:
        return axes, {}
    said = place.grid_mapping()
    attributes = {
        key: value if isinstance(value, str) else np.asarray(value, np.float64) for key, value in said.items()
    }
    return axes | {"crs": Variable((), np.int32(0), attributes)}, {"grid_mapping": "crs"}


def _distances(newest: Latest, config: FramesConfig) -> dict[str, Variable]:
    """Distances from the lower left corner, for frames without coordinates."""
    (height, width), (stored_height, stored_width) = newest.grid.fitted, newest.grid.stored
    pixel_x, pixel_y = config.extent_km / width, config.extent_km * stored_height / stored_width / height
    x, y = pixel_x * (np.arange(width) + 0.5), pixel_y * (np.arange(height)[::-1] + 0.5)
    return {
        "y": axis("y", y, None, "km", "distance from the lower edge to the centre of the pixel"),
        "x": axis("x", x, None, "km", "distance from the left edge to the centre of the pixel"),
    }


def extent(variables: dict[str, Variable]) -> dict[str, str | float]:
    """Attributes of ACDD for the extent in degrees, none if the place is unknown."""
    if "latitude" not in variables:
        return {}
    (south, north), (west, east) = (
        (float(variables[name].values.min()), float(variables[name].values.max())) for name in ("latitude", "longitude")
    )
    corners = ((south, west), (north, west), (north, east), (south, east), (south, west))
    return {
        "geospatial_lat_min": south,
        "geospatial_lat_max": north,
        "geospatial_lon_min": west,
        "geospatial_lon_max": east,
        "geospatial_bounds": f"POLYGON (({', '.join(f'{lat:.6f} {lon:.6f}' for lat, lon in corners)}))",
        "geospatial_bounds_crs": "EPSG:4326",
    }


def moments(newest: Latest, config: FramesConfig, leads: int) -> dict[str, Variable]:
    """Coordinates of the lead times, and of the windows that begin at the newest frame."""
    reference, minutes = newest.times[-1], config.interval * np.arange(1, leads + 1)
    times = [seconds(reference + timedelta(minutes=lead)) for lead in minutes]
    ends = np.float64([end for end in WINDOWS if minutes[0] <= end <= minutes[-1]] or minutes[-1:])
    bounds = np.stack([np.zeros_like(ends), ends], axis=1)
    return {
        "time": axis("time", np.float64(times), "time", long_name="time forecast for", axis="T", **EPOCH),
        "forecast_period": axis("time", minutes, "forecast_period", "minutes", "lead time"),
        "forecast_window": axis(
            *("forecast_window", ends, "forecast_period", "minutes", "end of a window from the newest frame"),
            bounds="forecast_window_bounds",
        ),
        "forecast_window_bounds": Variable(("forecast_window", "bounds"), bounds, {}),
        "forecast_reference_time": Variable(
            (),
            np.float64(seconds(reference)),
            {"standard_name": "forecast_reference_time", "long_name": "time of the newest observed frame", **EPOCH},
        ),
    }


def axis(
    dimension: str, values: np.ndarray, standard_name: str | None, units: str = "", long_name: str = "", **others: str
) -> Variable:
    """A coordinate along a dimension."""
    return Variable((dimension,), values, _named(standard_name, units, long_name or dimension) | others)


def _named(standard_name: str | None, units: str, long_name: str) -> dict[str, str]:
    named = {"standard_name": standard_name, "long_name": long_name, "units": units}
    return {key: value for key, value in named.items() if value}
