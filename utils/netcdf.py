"""NetCDF-4 files, which are HDF5 files with dimension scales.

https://docs.unidata.ucar.edu/nug/current/file_format_specifications.html, "The NetCDF-4 Format".
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from utils.files import replacing

Attributes = Mapping[str, str | int | float | np.generic | np.ndarray]
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."
COMPRESSION = {"compression": "gzip", "compression_opts": 4, "shuffle": True}


class Variable(NamedTuple):
    """A variable of a NetCDF file.

    A variable that has the name of its only dimension is the coordinate of that dimension.
    """

    dimensions: tuple[str, ...]
    values: np.ndarray  # as stored: packed, with `_FillValue` for missing values
    attributes: Attributes


def write_netcdf(path: str | os.PathLike, variables: Mapping[str, Variable], attributes: Attributes) -> None:
    """Write a NetCDF-4 file, which is complete or absent.

    The last two dimensions of larger variables are stored in one compressed chunk, so that a reader gets single
    pictures without the others. Raises `InputError` if the file cannot be written.
    """
    content = io.BytesIO()  # because HDF5 does not survive a full disk, and a file in memory needs no cleaning up
    with h5py.File(content, "w", track_order=True) as file:
        _describe(file, attributes)
        sizes = [pair for one in variables.values() for pair in zip(one.dimensions, one.values.shape, strict=True)]
        lengths = dict(sizes)
        for number, (name, length) in enumerate(lengths.items()):
            if is_coordinate(name, variables):
                scale, label = _create(file, name, variables[name]), name
            else:
                scale, label = file.create_dataset(name, (length,), ">f4"), f"{NO_VARIABLE}{length:10d}"
            scale.make_scale(label)
            scale.attrs["_Netcdf4Dimid"] = np.int32(number)
        for name, variable in variables.items():
            if not is_coordinate(name, variables):
                data = _create(file, name, variable)
                for axis, dimension in enumerate(variable.dimensions):
                    data.dims[axis].attach_scale(file[dimension])
    with replacing(path) as temporary:
        Path(temporary).write_bytes(content.getbuffer())


def is_coordinate(name: str, variables: Mapping[str, Variable]) -> bool:
    """Whether there is a variable of this name that is a coordinate."""
    return name in variables and variables[name].dimensions == (name,)


def _create(file: h5py.File, name: str, variable: Variable) -> h5py.Dataset:
    values = np.asarray(variable.values)
    fill = variable.attributes.get("_FillValue")
    options = {} if fill is None else {"fillvalue": fill}
    if len(variable.dimensions) > 1:
        options |= COMPRESSION | {"chunks": (*[1] * (values.ndim - 2), *values.shape[-2:])}
    data = file.create_dataset(name, data=values, **options)
    _describe(data, variable.attributes)
    return data


def _describe(target: h5py.File | h5py.Dataset, attributes: Attributes) -> None:
    for name, value in attributes.items():
        if isinstance(value, str):  # of fixed length, because not every reader supports variable lengths
            encoded = value.encode()
            value = np.array(encoded, h5py.string_dtype("utf-8", max(len(encoded), 1)))
        # netCDF's attributes are lists of numbers
        target.attrs.create(name, np.atleast_1d(value) if np.asarray(value).dtype.kind in "iuf" else value)
