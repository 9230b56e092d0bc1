"""Direction of the rows and columns of a NetCDF grid."""

from collections.abc import Iterator

import h5py
import numpy as np

from dataset.frames.attributes import text_of
from dataset.hdf5 import own_dataset, refuse_bombs

NORTH, EAST = "north", "east"
SIGNS = {  # standard names, units, axes and names of coordinates, in lower case and without _
    **dict.fromkeys(("projectionycoordinate", "latitude", "gridlatitude", "y", "lat", "northing"), NORTH),
    **dict.fromkeys(("degreesnorth", "degreenorth", "degreesn", "degreen"), NORTH),
    **dict.fromkeys(("projectionxcoordinate", "longitude", "gridlongitude", "x", "lon", "easting"), EAST),
    **dict.fromkeys(("degreeseast", "degreeeast", "degreese", "degreee"), EAST),
}
ATTRIBUTES = ("standard_name", "axis", "units")


def turned(values: np.ndarray, file: h5py.File, data: h5py.Dataset) -> np.ndarray:
    """Turn values `(H, W)` by their coordinates, north up and west left."""
    rows, columns = (next(_ways(file, data, axis), (None, 0)) for axis in (0, 1))
    if (rows[0], columns[0]) == (EAST, NORTH):
        values, rows, columns = values.T, columns, rows
    if rows[0] == NORTH and rows[1] > 0:
        values = values[::-1]
    if columns[0] == EAST and columns[1] < 0:
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _ways(file: h5py.File, data: h5py.Dataset, axis: int) -> Iterator[tuple[str, int]]:
    """Direction of each coordinate along an axis, and its sign."""
    frame, along = data.shape[-2:], (NORTH, EAST)[axis]
    for name in _names(file, data, data.ndim - 2 + axis):
        coordinate = own_dataset(file, name.strip("/"))
        way, plane = _way(coordinate), coordinate.shape == frame
        if not way or coordinate.dtype.kind not in "iuf" or not (coordinate.shape == (frame[axis],) or plane):
            continue
        refuse_bombs(coordinate, [0] * coordinate.ndim, coordinate.shape)
        line = coordinate[()]
        if plane and way == along:  # of a curved grid: what its middle says
            line = line[:, frame[1] // 2] if axis == 0 else line[frame[0] // 2]
        if line.ndim == 1 and not _counts_pixels(coordinate, line):
            yield way, int(np.nansum(np.sign(np.diff(line.astype(np.float64)))))


def _names(file: h5py.File, data: h5py.Dataset, axis: int) -> Iterator[str]:
    """Names of the coordinates of a dimension and of curved grids."""
    yield from (scale.name for scale in _scales(file, data, axis) if scale.name)
    for name in text_of(data, "coordinates").split():
        if "/" not in name and data.parent.get(name, getlink=True) is not None:
            yield f"{data.parent.name}/{name}"


def _scales(file: h5py.File, data: h5py.Dataset, axis: int) -> Iterator[h5py.Dataset]:
    """Scales of a dimension; `data.dims` would crash on invalid lists."""
    if "DIMENSION_LIST" in data.attrs:
        listed = data.attrs["DIMENSION_LIST"]
        kind = h5py.check_vlen_dtype(data.attrs.get_id("DIMENSION_LIST").dtype)
        if kind is None or h5py.check_ref_dtype(kind) is not h5py.Reference or np.shape(listed) != (data.ndim,):
            raise ValueError("its attribute DIMENSION_LIST is not a list of dimensions")
        yield from (file[reference] for reference in listed[axis] if reference)  # copied data sets lose them


def _way(coordinate: h5py.Dataset) -> str | None:
    texts = [text_of(coordinate, key) for key in ATTRIBUTES] + [coordinate.name.rpartition("/")[2]]
    ways = (SIGNS.get(text.lower().replace("_", "")) for text in texts)
    return next(filter(None, ways), None)


def _counts_pixels(coordinate: h5py.Dataset, line: np.ndarray) -> bool:
    """Whether a coordinate only counts pixels, from the top."""
    return not any(text_of(coordinate, key) for key in ATTRIBUTES) and any(
        np.array_equal(line, np.arange(first, first + len(line))) for first in (0, 1)
    )
