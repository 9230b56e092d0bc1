"""Zarr stores (format 2) with the names of dimensions that xarray and GDAL expect.

https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html
"""

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numcodecs
import numpy as np

from utils.files import flush_to_disk, replacing
from utils.netcdf import Attributes, Variable

COMPRESSOR = {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1, "blocksize": 0}


def write_zarr(path: str | os.PathLike, variables: Mapping[str, Variable], attributes: Attributes) -> None:
    """Write a folder with a Zarr store, which is complete or absent.

    Chunks are those of `write_netcdf`. Raises `InputError` if the folder cannot be written.
    """
    metadata = {".zgroup": {"zarr_format": 2}, ".zattrs": _plain(attributes)}
    with replacing(path) as temporary:
        temporary.mkdir()
        for name, variable in variables.items():
            metadata |= {f"{name}/{key}": value for key, value in _described(variable).items()}
            _write_chunks(temporary / name, variable)
        metadata[".zmetadata"] = {"zarr_consolidated_format": 1, "metadata": dict(metadata)}
        for name, content in metadata.items():
            (temporary / name).write_text(json.dumps(content, indent=1))
        for file in temporary.rglob("*"):
            flush_to_disk(file)


def _described(variable: Variable) -> dict[str, dict]:
    values, fill = np.asarray(variable.values), variable.attributes.get("_FillValue")
    others = {key: value for key, value in variable.attributes.items() if key != "_FillValue"}
    array = {
        "zarr_format": 2,
        "shape": values.shape,
        "chunks": _chunk(values),
        "dtype": values.dtype.newbyteorder("<").str,
        "compressor": COMPRESSOR,
        "fill_value": None if fill is None else fill.item(),
        "order": "C",
        "filters": None,
    }
    return {".zarray": array, ".zattrs": {"_ARRAY_DIMENSIONS": variable.dimensions, **_plain(others)}}


def _write_chunks(folder: Path, variable: Variable) -> None:
    values, codec = np.asarray(variable.values), numcodecs.get_codec(COMPRESSOR)
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    folder.mkdir()
    for place in itertools.product(*map(range, values.shape[:-2])):
        name = ".".join(map(str, [*place, *[0] * min(values.ndim, 2)])) or "0"
        (folder / name).write_bytes(codec.encode(np.ascontiguousarray(values[place])))


def _chunk(values: np.ndarray) -> tuple[int, ...]:
    return (*[1] * (values.ndim - 2), *values.shape[-2:])


def _plain(attributes: Attributes) -> dict:
    """Attributes as JSON can hold them."""
    return {key: value if isinstance(value, str) else np.asarray(value).tolist() for key, value in attributes.items()}
