"""Datasets and groups of HDF5 frames that nobody vouches for."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py

from dataset.frames.readers.limits import check_frame
from dataset.hdf5 import is_own, open_hdf5, own_dataset, refuse_bombs, refuse_endless_heaps


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """A file that another program may have damaged or be writing."""
    refuse_endless_heaps(path)
    with open_hdf5(path, arriving=True) as file:
        yield file


def frame_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset of a frame.

    Raises ValueError if it is not safe to read.
    """
    data = own_dataset(file, name.strip("/"))
    check_frame(data.shape, data.dtype)
    refuse_bombs(data, [0] * data.ndim, data.shape)
    return data


def own_group(file: h5py.File, name: str) -> h5py.Group | None:
    """A group that lies in the file itself, or None."""
    return file[name] if is_own(file, name) and isinstance(file[name], h5py.Group) else None
