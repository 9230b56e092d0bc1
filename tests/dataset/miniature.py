"""Radar archives small enough for tests, raw as published and as HDF5 files.

Every frame carries its time: the first two pixels of its first row are the digits of its number, to the base BASE.
"""

import pickle
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from dataset.published.reader import LAYOUTS

BASE = 80
SHAPE = (6, 8)
WET, DRY = 40, 0
START = datetime(2018, 1, 1)


def radar_frames(times, wet=True, shape=SHAPE) -> np.ndarray:
    """Frames uint8 `(T, H, W)` at the numbers `times`; `wet` says, of all or of each, whether it rains."""
    times = np.asarray(times)
    frames = np.broadcast_to(np.where(wet, WET, DRY)[..., None, None], (len(times), *shape)).astype(np.uint8)
    frames[:, 0, 0], frames[:, 0, 1] = times % BASE, times // BASE
    return frames


def numbers(frames) -> set[int]:
    """The numbers of frames `(..., H, W)` of stored values."""
    frames = np.asarray(frames).round().astype(int)
    return set((frames[..., 0, 0] + BASE * frames[..., 0, 1]).ravel().tolist())


def write_h5(path: Path, name: str, **splits: np.ndarray) -> Path:
    """Write windows `(N, T, H, W)` of each split as the source `name` has them."""
    layout = LAYOUTS[name]
    with h5py.File(path, "w") as file:
        for split, windows in splits.items():
            file[layout.length.format(split=split)] = len(windows)
            for number, window in enumerate(windows, layout.first):
                file.create_dataset(layout.window.format(split=split, number=number), data=window, compression="lzf")
    return path


def write_shanghai(raw: Path, periods: list[np.ndarray]) -> None:
    """A folder of PNG frames for each period `(T, H, W)`."""
    for number, frames in enumerate(periods):
        folder = raw / f"period_{number}"
        folder.mkdir(parents=True)
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"{index}.png")


def date(number: int) -> datetime:
    """Time of a MeteoNet frame."""
    return START + number * timedelta(minutes=5)


def write_meteonet(path: Path, times, frames: np.ndarray, missing=(), protocol: int = 3) -> None:
    """One npz file with `frames` at the numbers `times`, its dates pickled as in the published files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("data.npy", "w") as file:
            np.lib.format.write_array(file, frames)
        for name, of_dates in (("dates", times), ("miss_dates", missing)):
            write_objects(archive, name, [date(number) for number in of_dates], protocol)


def write_objects(archive: zipfile.ZipFile, name: str, objects: list, protocol: int = 3) -> None:
    """An array of Python objects in an npz file."""
    array = np.empty(len(objects), object)
    array[:] = objects
    with archive.open(f"{name}.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        pickle.dump(array, file, protocol)


def tenths(frames: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Frames in dBZ as MeteoNet's new product has them: tenths, -100 where nothing is seen, -200 where missing."""
    return np.where(missing, -200, np.where(frames == 0, -100, 10 * frames.astype(np.int16))).astype(np.int16)


def write_cikm(raw: Path, train: np.ndarray, test: np.ndarray) -> None:
    """Text lines of the samples `(N, 15, 4, 101, 101)`."""
    raw.mkdir(parents=True, exist_ok=True)
    for name, samples in (("train", train), ("testA", test)):
        with (raw / f"{name}.txt").open("w") as file:
            for number, sample in enumerate(samples, 1):
                file.write(f"{name}_{number},12.5,{' '.join(map(str, sample.ravel().tolist()))}\n")
