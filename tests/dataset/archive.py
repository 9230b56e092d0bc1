"""A folder of frames with times in their names, and ways to spoil one of them."""

import os
from datetime import datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import yaml
from PIL import Image

from dataset.frames.reader import open_frames

START = datetime(2023, 5, 1)
STEP = timedelta(minutes=5)
SETTINGS = {
    "pattern": "%Y/%m/%d/radar_%Y%m%d%H%M.npy",
    "interval": 5,
    "range": [0, 255],
    "units": "VIL byte",
    "thresholds": [16, 74, 133],
    "extent_km": 128,
    "split": {"valid_from": "2023-05-01T02:00", "test_from": "2023-05-01T03:00"},
    "stride": 2,
}


class Archive:
    """A folder of frames to spoil; `frames` maps the number of a frame, from `START` on, to what is stored."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.frames: dict[int, np.ndarray] = {}

    def configure(self, **changes):
        self.settings = {key: value for key, value in (SETTINGS | changes).items() if value is not None}
        (self.folder / "frames.yaml").write_text(yaml.safe_dump(self.settings))
        return self

    def path(self, number: int) -> Path:
        path = self.folder / (START + number * STEP).strftime(self.settings["pattern"])
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, numbers, shape=(6, 8), dtype=np.uint8):
        for number in numbers:
            frame = np.random.default_rng(number).integers(0, 255, shape).astype(dtype)
            self.store(number, frame)
        return self

    def store(self, number: int, frame: np.ndarray):
        self.frames[number], path = frame, self.path(number)
        if path.suffix == ".png":
            Image.fromarray(frame).save(path)
        elif path.suffix == ".npy":
            np.save(path, frame)
        else:
            with h5py.File(path, "w") as file:
                file[self.settings["variable"]] = frame[None]

    def open(self, split="train", img_size=(6, 8), seq_len=4, **options):
        return open_frames(split, self.folder, img_size, seq_len, **options)


def wrong_size(path):
    np.save(path, np.zeros((5, 8), np.uint8))


def aged(path: Path) -> None:
    """Give a file a time of modification long ago: nobody writes it any more."""
    os.utime(path, (0, 0))


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])
    aged(path)


def hostile(path):
    with open(path, "wb") as file:
        np.save(file, np.array([{}], object), allow_pickle=True)
    aged(path)


def absurd(path):
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 2**20)})
    aged(path)


def unended(path):
    path.write_bytes(path.read_bytes().replace(b"}", b"(", 1))
    aged(path)


def all_missing(path):
    np.save(path, np.full((6, 8), 255, np.uint8))
