"""Synthetic storms in SEVIR's file layout.

    python -m dataset synthetic --out data/synthetic --events 100 --size 384 --resolution 128 --seed 0

writes `CATALOG.csv` and `data/vil/<year>/SEVIR_VIL_STORMEVENTS_<year>_<start>_<end>.h5` (the layout of Veillette
et al. 2020, NeurIPS 33) over 2018 and 2019. Their dates put about 70, 10 and 20 % of the events into the training,
validation and test split. `dataset.synthetic.storms` says how the storms are made.
"""

import argparse
import contextlib
import csv
import logging
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from dataset.sevir.catalog import EVENT_TYPE, SYNTHETIC_TYPE
from dataset.source import VIL
from dataset.synthetic.storms import MAX_BYTE, storms
from utils.errors import InputError

FRAMES = 49
SMALLEST = 8  # pixels: below it a frame holds no storm
DEFAULT = {"events": 200, "size": 128, "resolution": 128, "seed": 0}  # half a minute, 95 MB
CATALOG, DATA = "CATALOG.csv", "data"
STAGING = ".unfinished"  # where a set stays hidden until it is complete
PERIODS = (
    (datetime(2018, 1, 1), datetime(2019, 1, 1)),  # training
    (datetime(2019, 1, 1), datetime(2019, 10, 1)),  # validation
    (datetime(2019, 10, 1), datetime(2020, 1, 1)),  # test
)
PLACE = {  # the same for all events: 384 km around the centre of SEVIR's projection
    "llcrnrlat": 36.25,
    "llcrnrlon": -100.14,
    "urcrnrlat": 39.71,
    "urcrnrlon": -95.76,
    "proj": "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere",
}

LOG = logging.getLogger(__name__)


def ensure(folder: str | Path) -> None:
    """Generate the `DEFAULT` set unless `folder` holds a catalogue.

    Several processes may call it at once: one generates, the others wait for it. Raises `InputError` if the
    folder cannot be written or holds other data.
    """
    folder = Path(folder)
    if (folder / CATALOG).exists():
        return
    with _exclusive(folder):
        if not (folder / CATALOG).exists():
            LOG.info("%s has no %s: generating %d synthetic events", folder, CATALOG, DEFAULT["events"])
            _write(folder, **DEFAULT)


def write_sevir(
    folder: str | Path,
    events: int,
    size: int = 384,  # pixels of the stored frames
    resolution: int = 128,  # pixels that the storms are generated at, if fewer than size
    seed: int = 0,
) -> None:
    """Write `events` synthetic events of 49 frames, all or nothing.

    An event's storms depend on `seed`, its number and `resolution`. Its date depends on `events` too. With three
    events or more each split has at least one. Raises `InputError` for impossible numbers, and for a folder that
    holds data already or cannot be written.
    """
    limits = {"events": (events, 1), "size": (size, SMALLEST), "resolution": (resolution, SMALLEST), "seed": (seed, 0)}
    for name, (value, least) in limits.items():
        if value < least:
            raise InputError(f"{name} is {value}; give {least} or more.")
    folder = Path(folder)
    with _exclusive(folder):
        _write(folder, events, size, min(resolution, size), seed)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time write to the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".synthetic.lock"):
            yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write synthetic storms to {folder} ({reason}); choose another one.") from error


def _write(folder: Path, events: int, size: int, resolution: int, seed: int) -> None:
    """Write to a hidden folder, then move it, the catalogue last."""
    for name in (CATALOG, DATA):  # real SEVIR files have the same names: never overwrite any
        if (folder / name).exists():
            raise InputError(f"{folder / name} exists already; choose another folder for synthetic storms.")
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        bar = tqdm(_generate(events, size, resolution, seed), "storms", events, unit="event", disable=None)
        frames = iter(bar)
        rows = []
        for file_name, group in groupby(enumerate(event_times(events)), key=lambda event: _file_name(event[1])):
            rows += _write_file(staging / DATA, file_name, dict(group), size, frames)
        with (staging / CATALOG).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        for name in (DATA, CATALOG):
            os.replace(staging / name, folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _generate(events: int, size: int, resolution: int, seed: int) -> Iterator[Tensor]:
    enlarging = enlargement(resolution, size)
    for number in range(events):
        frames = storms(1, FRAMES, resolution, seed, first=number)[0]
        yield frames if size == resolution else enlarge(frames, enlarging)


def _write_file(folder: Path, name: str, times: dict[int, datetime], size: int, frames: Iterator) -> list[dict]:
    """Write events `{number: time}` to an HDF5 file; return catalogue rows."""
    ids = [f"SYN{number:06d}" for number in times]
    rows = []
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / name, "w") as file:
        file["id"] = np.array(ids, dtype="S")
        # A frame is a chunk: readers take a window of them, and neighbouring pixels compress best.
        options = {"chunks": (1, size, size, 1), "compression": "gzip", "compression_opts": 1}
        vil = file.create_dataset("vil", (len(ids), size, size, FRAMES), "u1", **options)
        for index, time in enumerate(times.values()):
            event = next(frames)
            vil[index] = rearrange(event, "t h w -> h w t").numpy()
            where = {"id": ids[index], "file_name": name, "file_index": index}
            rows.append(where | _description(event, time))
    return rows


def _description(frames: Tensor, time: datetime) -> dict:
    """Columns of the catalogue for an event `(T, size, size)`."""
    return {
        "img_type": "vil",
        "time_utc": time.isoformat(sep=" "),
        "minute_offsets": ":".join(f"{VIL.interval * (i - FRAMES // 2):.0f}" for i in range(FRAMES)),
        "episode_id": "",
        "event_id": "",
        EVENT_TYPE: SYNTHETIC_TYPE,
        **PLACE,
        "size_x": frames.shape[-1],
        "size_y": frames.shape[-2],
        "height_m": VIL.extent * 1000,
        "width_m": VIL.extent * 1000,
        "data_min": int(frames.min()),
        "data_max": int(frames.max()),
        "pct_missing": 0.0,
    }


def event_times(events: int) -> list[datetime]:
    """Spread the events evenly over each split's period, in order of time."""
    valid, test = (max(1, round(share * events)) if events >= 3 else 0 for share in (0.1, 0.2))
    return [
        (start + (i + 0.5) / count * (end - start)).replace(microsecond=0)
        for (start, end), count in zip(PERIODS, (events - valid - test, valid, test), strict=True)
        for i in range(count)
    ]


def _file_name(time: datetime) -> str:
    half = "0101_0630" if time.month <= 6 else "0701_1231"
    return f"vil/{time.year}/SEVIR_VIL_STORMEVENTS_{time.year}_{half}.h5"


def enlargement(resolution: int, size: int) -> Tensor:
    """Matrix `(size, resolution)` that `enlarge` applies to rows and columns.

    It is the pseudo-inverse of antialiased bilinear shrinking: a reader who shrinks the frames again gets the same
    storms, where plain interpolation would lose most of the small scales on that round trip.
    """
    unit = torch.eye(size)[None, None]
    shrinking = F.interpolate(unit, size=(resolution, size), mode="bilinear", antialias=True)[0, 0]
    return torch.linalg.pinv(shrinking)


def enlarge(frames: Tensor, enlarging: Tensor) -> Tensor:
    """Enlarge bytes `(T, resolution, resolution)` to `(T, size, size)`."""
    return (enlarging @ frames.float() @ enlarging.T).round().clamp(0, MAX_BYTE).to(torch.uint8)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset synthetic",
        description="Write synthetic storms in SEVIR's file layout.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--events", type=int, default=100, help="number of events with 49 frames each (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=384, help="side of the stored frames in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--resolution", type=int, default=128, help="side of the generated storms in pixels (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the storms (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Write a set of storms."""
    args = build_parser().parse_args(arguments)
    write_sevir(args.out, args.events, args.size, args.resolution, args.seed)
