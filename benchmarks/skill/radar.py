"""Days of real radar as reflectivity on one grid, see `benchmarks.skill.real`.

The files are the example data of pysteps (https://github.com/pySTEPS/pysteps-data, folder `radar`): composites of KNMI
and FMI (CC BY 4.0) and of MeteoSwiss, a frame every 5 minutes. They are read by the readers of the project.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from dataset.frames.archive.archive import archive_of
from dataset.frames.archive.names import moment
from dataset.frames.complete import complete_config
from dataset.synthetic.storms import storms
from dataset.units import rain_rate
from utils.errors import InputError
from utils.files import replacing

KM = 4  # width of a pixel by default
CANVAS = 1280, 768  # km, on which every domain fits
STEP, MISSING = 0.5, 255  # dBZ of a stored step, as FMI and MeteoSwiss store them
SETTINGS = {
    "name": "reflectivity",
    "interval": 5,
    "scale": STEP,
    "offset": 0,
    "missing": MISSING,
    "units": "dBZ",
    "range": [0, 60],
    "thresholds": [20, 30, 40],
}
STORM = datetime(2000, 1, 1)  # day of the synthetic frames that validate a training
STORM_KM = 384  # their width
# Reflectivity of VIL bytes, only roughly: storms of the benchmark are to look like radar.
OF_BYTES = {0: 0, 1: 5, 16: 18, 74: 30, 133: 40, 160: 45, 181: 50, 219: 55, 254: 60}


@dataclass(frozen=True)
class Day:
    """Frames of one day of one service."""

    date: str
    pattern: str  # of the files' names
    relation: tuple[float, float] | None  # Z = a R^b of the service, None for reflectivity

    @property
    def glob(self) -> str:
        """A pattern of the names for `Path.rglob`."""
        day = datetime.fromisoformat(self.date)
        return day.strftime(self.pattern.replace("%H%M", "*"))


DAYS = {
    "knmi_2010": Day("2010-08-26", "RAD_NL25_RAP_5min_%Y%m%d%H%M.h5", (200, 1.6)),
    "mch_2015": Day("2015-05-15", "AQC%y%j%H%MF_00005.801.gif", (316, 1.5)),
    "mch_2016": Day("2016-07-11", "AQC%y%j%H%MV_00005.801.gif", (316, 1.5)),
    "fmi_2016": Day("2016-09-28", "%Y%m%d%H%M_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz", None),
}


def prepare(radar: Path, folder: Path, km: int) -> None:
    """Write the frames of all days below `radar` in pixels of `km`, and a description for each left-out day.

    Raises `InputError` that names a day without files.
    """
    frames = folder / "frames"
    for name, day in DAYS.items():
        done = frames / f"{name}.done"
        if not done.exists():
            for time, values in _reflectivity(radar, folder, name, day, km):
                _write(frames, time, values, km)
            done.touch()
    if not (frames / "storm.done").exists():
        for number, values in enumerate(storm_frames(1, STORM_KM // km)[0]):
            _write(frames, STORM.replace(hour=5 * number // 60, minute=5 * number % 60), values.numpy(), km)
        (frames / "storm.done").touch()
    for name in DAYS:
        _describe(folder / name, name, km)


def storm_frames(events: int, pixels: int, seed: int = 0) -> Tensor:
    """Generate storms, reflectivity in dBZ `(events, 49, pixels, pixels)`."""
    values = np.interp(np.arange(256), list(OF_BYTES), list(OF_BYTES.values()))
    return torch.from_numpy(values)[storms(events, size=pixels, seed=seed).long()]


def coarse(reflectivity: np.ndarray, factor: int) -> np.ndarray:
    """Average dBZ `(H, W)` over squares of pixels, as linear reflectivity.

    Minus infinity is dry. NaN are left out, and a square with at least as many of them as of values is NaN. What fills
    no square is cut off.
    """
    height, width = (side // factor for side in reflectivity.shape)
    squares = 10 ** (reflectivity[: height * factor, : width * factor] / 10)
    squares = squares.reshape(height, factor, width, factor).swapaxes(1, 2).reshape(height, width, -1)
    known = np.isfinite(squares).sum(-1)
    mean = np.nansum(squares, -1) / np.maximum(known, 1)
    with np.errstate(divide="ignore"):
        return np.where(2 * known > factor**2, 10 * np.log10(mean), np.nan)


def _reflectivity(radar: Path, folder: Path, name: str, day: Day, km: int) -> Iterator[tuple[datetime, np.ndarray]]:
    """Yield time and coarse dBZ of each frame of a day."""
    first = next(radar.rglob(day.glob), None)
    if first is None:
        raise InputError(f"{radar} holds no file {day.glob}; --radar must hold the example data of pysteps.")
    config = {key: SETTINGS[key] for key in ("interval", "range", "thresholds")}
    config |= {"folder": str(first.parent.resolve()), "pattern": day.pattern}
    path = folder / "originals" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    archive = archive_of(complete_config(path))
    for time in tqdm(list(map(moment, archive.times())), name, unit="frame"):
        frame = archive.read(time)
        values = frame.values
        if day.relation is not None:
            a, b = day.relation
            with np.errstate(divide="ignore"):
                rate = rain_rate(frame.metadata.units, SETTINGS["interval"]) * np.maximum(values, 0)
                values = 10 * np.log10(a * rate**b)
        yield time, coarse(values, km)


def _write(folder: Path, time: datetime, reflectivity: np.ndarray, km: int) -> None:
    """Write dBZ `(h, w)` into the upper left corner of the canvas."""
    steps = np.rint(np.clip(reflectivity, 0, SETTINGS["range"][1]) / STEP)
    canvas = np.full([side // km for side in CANVAS], MISSING, np.uint8)
    canvas[tuple(map(slice, reflectivity.shape))] = np.where(np.isnan(reflectivity), MISSING, steps)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{time:%Y%m%d%H%M}.npy") as temporary, temporary.open("wb") as file:
        np.save(file, canvas)


def _describe(folder: Path, left_out: str, km: int) -> None:
    """Write the `frames.yaml` whose test split is a day."""
    folder.mkdir(parents=True, exist_ok=True)
    split = {"valid": [f"{STORM:%Y-%m-%d}"], "test": [DAYS[left_out].date]}
    own = {"pattern": "%Y%m%d%H%M.npy", "folder": "../frames", "extent_km": CANVAS[1], "split": split}
    (folder / "frames.yaml").write_text(yaml.safe_dump(SETTINGS | own))
