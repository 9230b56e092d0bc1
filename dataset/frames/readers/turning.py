"""Direction of the rows and columns of a NetCDF grid."""

from collections.abc import Iterator
from typing import NamedTuple

import h5py
import numpy as np

from dataset.frames.georeference import Georeference
from dataset.frames.readers.attributes import text_of
from dataset.hdf5 import own_dataset, refuse_bombs

NORTH, EAST = "north", "east"
SIGNS = {  # standard names, units, axes and names of coordinates, in lower case and without _
    **dict.fromkeys(("projectionycoordinate", "latitude", "gridlatitude", "y", "lat", "northing"), NORTH),
    **dict.fromkeys(("degreesnorth", "degreenorth", "degreesn", "degreen"), NORTH),
    **dict.fromkeys(("projectionxcoordinate", "longitude", "gridlongitude", "x", "lon", "easting"), EAST),
    **dict.fromkeys(("degreeseast", "degreeeast", "degreese", "degreee"), EAST),
}
ATTRIBUTES = ("standard_name", "axis", "units")
METRES = {"m": 1.0, "metre": 1.0, "meter": 1.0, "metres": 1.0, "meters": 1.0, "km": 1000.0}


class Way(NamedTuple):
    """How a coordinate changes along an axis of an array."""

    direction: str | None = None  # to the north or to the east
    sign: int = 0
    line: np.ndarray | None = None  # coordinates in metres or degrees
    degrees: bool = False


def turned(
    values: np.ndarray, file: h5py.File, data: h5py.Dataset, crs: str | None
) -> tuple[np.ndarray, Georeference | None]:
    """Turn values `(H, W)` with north up and west left.

    Values without coordinates stay as they are.
    """
    rows, columns = (next(_ways(file, data, axis), Way()) for axis in (0, 1))
    if (rows.direction, columns.direction) == (EAST, NORTH):
        values, rows, columns = values.T, columns, rows
    if rows.direction == NORTH and rows.sign > 0:
        values, rows = values[::-1], _reversed(rows)
    if columns.direction == EAST and columns.sign < 0:
        values, columns = values[:, ::-1], _reversed(columns)
    placed = (rows.direction, columns.direction) == (NORTH, EAST) and rows.degrees == columns.degrees
    if not placed or rows.line is None or columns.line is None:
        return values, None
    return values, Georeference(crs, columns.line, rows.line, rows.degrees)


def _reversed(way: Way) -> Way:
    return way._replace(line=None if way.line is None else way.line[::-1])


def direction_of(coordinate: h5py.Dataset) -> str | None:
    """Direction that the names and attributes of a coordinate mean."""
    texts = [text_of(coordinate, key) for key in ATTRIBUTES] + [coordinate.name.rpartition("/")[2]]
    directions = (SIGNS.get(text.lower().replace("_", "")) for text in texts)
    return next(filter(None, directions), None)


def _ways(file: h5py.File, data: h5py.Dataset, axis: int) -> Iterator[Way]:
    """The way of each coordinate along an axis."""
    frame, along = data.shape[-2:], (NORTH, EAST)[axis]
    for name in _names(file, data, data.ndim - 2 + axis):
        coordinate = own_dataset(file, name.strip("/"))
        direction, plane = direction_of(coordinate), coordinate.shape == frame
        if not direction or coordinate.dtype.kind not in "iuf" or not (coordinate.shape == (frame[axis],) or plane):
            continue
        refuse_bombs(coordinate, [0] * coordinate.ndim, coordinate.shape)
        line = coordinate[()].astype(np.float64)
        if plane and direction == along:  # of a curved grid: what its middle says
            line = line[:, frame[1] // 2] if axis == 0 else line[frame[0] // 2]
        if line.ndim == 1 and not _counts_pixels(coordinate, line):
            sign = int(np.nansum(np.sign(np.diff(line))))
            units = text_of(coordinate, "units").lower()
            degrees = units.replace("_", "") in SIGNS
            known = not plane and (degrees or units in METRES) and np.isfinite(line).all()
            yield Way(direction, sign, line * METRES.get(units, 1.0) if known else None, degrees)


def _names(file: h5py.File, data: h5py.Dataset, axis: int) -> Iterator[str]:
    """Names of the coordinates of a dimension and of curved grids."""
    yield from (scale.name for scale in _scales(file, data, axis) if scale.name)
    for name in text_of(data, "coordinates").split():
        if "/" not in name and data.parent.get(name, getlink=True) is not None:
            yield f"{data.parent.name}/{name}"


def _scales(file: h5py.File, data: h5py.Dataset, axis: int) -> Iterator[h5py.Dataset]:
    """Scales of a dimension; `data.dims` would crash on invalid lists."""
    if "DIMENSION_LIST" in data.attrs:
        stored = data.attrs.get_id("DIMENSION_LIST")
        kind = h5py.check_vlen_dtype(stored.dtype)
        if kind is None or h5py.check_ref_dtype(kind) is not h5py.Reference or stored.shape != (data.ndim,):
            raise ValueError("its attribute DIMENSION_LIST is not a list of dimensions")
        listed = data.attrs["DIMENSION_LIST"]
        yield from (file[reference] for reference in listed[axis] if reference)  # copied data sets lose them


def _counts_pixels(coordinate: h5py.Dataset, line: np.ndarray) -> bool:
    """Whether a coordinate only counts pixels, from the top."""
    return not any(text_of(coordinate, key) for key in ATTRIBUTES) and any(
        np.array_equal(line, np.arange(first, first + len(line))) for first in (0, 1)
    )
