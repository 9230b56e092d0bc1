"""Size of the cache of native frames, time to pack it, and crops per second from it.

    python -m benchmarks.speed.crops [--days 30] [--num_workers 0 2 4] [--seconds 4] [--rounds 3] [--json result.json]

The archive is generated: storms of `dataset.synthetic.storms` with noise, on the grid and with the coverage of a
national composite, more of them on some days than on others. The same random crops are read from the cache, from the
levels in a raw memory-mapped file, and from a Zarr store with the same codec, in turn, each turn with new workers.
Complete frames of the cache are what a training on whole frames would read.
"""

import argparse
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
import yaml
from torch import Tensor

from benchmarks.speed.data import SEQ_LEN, rate
from benchmarks.speed.measuring import arguments, check_at_least, table, write_numbers
from dataset.frames.cache.cache import Cache, open_cache
from dataset.frames.cache.days import BLOCK, CODEC, DEPTH
from dataset.frames.complete import complete_config
from dataset.frames.crops import Crops, open_crops
from dataset.frames.packages import has
from dataset.sequences import Sequences
from dataset.synthetic.storms import storms
from utils.errors import exit_on_input_error

START, STEP = datetime(2023, 5, 1), timedelta(minutes=5)
PER_DAY, EVENT = 288, 48  # frames of a day and of a storm
STORM, LIBRARY = 384, 6  # pixels, number of storms that are generated and then turned and placed
MISSING = 255
ITEMS = 10  # whose processor time is measured together
CAVEAT = "The files were written a moment ago and are in memory: a cold disk comes on top."


def write_archive(folder: Path, days: int, height: int, width: int) -> float:
    """Write bytes of 0.25 dBZ in NPY files, and `frames.yaml`. Returns the share of wet pixels in valid ones."""
    config = {
        "pattern": "%Y%m%d/%H%M.npy",
        "interval": 5,
        "scale": 0.25,
        "missing": MISSING,
        "units": "dBZ",
        "range": [0, 60],
        "thresholds": [10, 20, 30, 40],
        "extent_km": width,
        "split": {"valid_from": "2040-01-01", "test_from": "2041-01-01"},
    }
    (folder / "frames.yaml").write_text(yaml.safe_dump(config))
    random, library = np.random.default_rng(0), storms(LIBRARY, EVENT, STORM).numpy()
    y, x = np.mgrid[:height, :width]
    outside = (x / width - 0.5) ** 2 + (y / height - 0.5) ** 2 > 0.24  # a quarter of the grid, as of FMI
    wet = []
    for number in range(0, days * PER_DAY, EVENT):
        block = _block(library, random, (height, width), (3 * (number // PER_DAY) + 1) % 5)
        for frame, time_ in zip(block, range(number, number + EVENT), strict=True):
            frame[outside] = MISSING
            path = folder / (START + time_ * STEP).strftime(config["pattern"])
            path.parent.mkdir(exist_ok=True)
            np.save(path, frame)
        wet.append(float(((block[::12] >= 40) & ~outside).mean() / (~outside).mean()))
    return float(np.mean(wet))


def _block(library: np.ndarray, random: np.random.Generator, size: tuple[int, int], storms_: int) -> np.ndarray:
    """Four hours of a day with so many storms at a time, bytes `(EVENT, *size)`."""
    margin = np.zeros((EVENT, size[0] + 2 * STORM, size[1] + 2 * STORM), np.uint8)
    for _ in range(storms_):
        storm = library[random.integers(LIBRARY)]
        storm = np.rot90(storm, random.integers(4), (1, 2))[:, :: random.choice((-1, 1))]
        noise = random.integers(-4, 5, storm.shape, np.int8)
        noisy = np.where(storm > 16, np.clip(storm.astype(np.int16) + noise, 1, 240), 0).astype(np.uint8)
        top, left = (random.integers(STORM // 2, STORM // 2 + one) for one in size)
        place = margin[:, top : top + STORM, left : left + STORM]
        np.maximum(place, noisy[:, : place.shape[1], : place.shape[2]], out=place)
    return margin[:, STORM : STORM + size[0], STORM : STORM + size[1]].copy()


class Stored(Sequences):
    """The crops of a data set, read from an array of levels."""

    def __init__(self, crops: Crops, path: Path):
        self.crops, self.path, self._array = crops, path, None

    def __len__(self) -> int:
        return len(self.crops)

    def order(self, seed: int, epoch: int):
        return self.crops.order(seed, epoch)

    def __getitem__(self, index: int) -> Tensor:
        if self._array is None:
            self._array = self._open()
        frames, rows, columns = self.crops.region(index)
        y, x = (slice(BLOCK * one.start, BLOCK * one.stop) for one in (rows, columns))
        levels = np.asarray(self._array[frames[0] : frames[-1] + 1, y, x])
        return torch.from_numpy(self.crops.cache.encoder.values(levels))[:, None]

    def _open(self):
        return np.load(self.path, mmap_mode="r")


class InZarr(Stored):
    """The crops of a data set, read from a Zarr store."""

    def _open(self):
        import zarr

        return zarr.open_array(self.path, mode="r")


class Complete(Sequences):
    """The complete frames of the windows of crops."""

    def __init__(self, crops: Crops):
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops.windows)

    def __getitem__(self, index: int) -> Tensor:
        frames, *_ = self.crops.region(index * len(self.crops.tiles))
        return self.crops.cache.read(frames)


def padded_levels(cache: Cache) -> Iterator[np.ndarray]:
    """Levels of the frames, a slab of chunks at a time, up to whole blocks."""
    for start in range(0, len(cache.times), DEPTH):
        numbers = np.arange(start, min(start + DEPTH, len(cache.times)))
        values = cache.read_blocks(numbers, *map(range, cache.seen.shape))[:, 0].numpy()
        yield np.where(np.isnan(values), 65535, np.rint(values * cache.encoder.levels)).astype("<u2")


def write_raw(cache: Cache, path: Path) -> None:
    """Write levels to a raw NPY file."""
    shape = len(cache.times), *(BLOCK * blocks for blocks in cache.seen.shape)
    array = np.lib.format.open_memmap(path, "w+", "<u2", shape)
    for number, levels in enumerate(padded_levels(cache)):
        array[number * DEPTH : number * DEPTH + len(levels)] = levels
    array.flush()


def write_zarr(cache: Cache, path: Path) -> None:
    """Write levels to a Zarr store with our codec, in the chunks in which it reads fastest."""
    import zarr
    from zarr.codecs import BloscCodec

    shape = len(cache.times), *(BLOCK * blocks for blocks in cache.seen.shape)
    codec = BloscCodec(cname=CODEC[0].decode(), clevel=CODEC[1], shuffle="shuffle")
    array = zarr.create_array(path, shape=shape, chunks=(DEPTH, 128, 128), dtype="<u2", compressors=codec)
    for number, levels in enumerate(padded_levels(cache)):
        array[number * DEPTH : number * DEPTH + len(levels)] = levels


def measure_packing(folder: Path) -> tuple[Crops, dict]:
    """Pack an archive and open its crops; returns them, and sizes, seconds and memory."""
    config, process = complete_config(folder), psutil.Process()
    started = time.perf_counter()
    cache = open_cache(config, None)
    packing = time.perf_counter() - started
    before, started = process.memory_info().rss, time.perf_counter()
    crops = open_crops("train", folder, 128, SEQ_LEN)
    crops.order(0, 0)[:1]
    opening, after = time.perf_counter() - started, process.memory_info().rss
    frames = len(cache.times)
    stored = sum(file.stat().st_size for file in cache.days.folder.iterdir())
    return crops, {
        "": "cache",
        "frames": frames,
        "source kB/frame": sum(file.stat().st_size for file in folder.glob("2*/*")) / frames / 1e3,
        "cache kB/frame": stored / frames / 1e3,
        "index kB/frame": 4 * np.prod(cache.seen.shape) / 1e3,
        "packing ms/frame": 1e3 * packing / frames,
        "opening s": opening,
        "memory MB": (after - before) / 1e6,
    }


def measure(crops: Crops, folder: Path, args: argparse.Namespace) -> list[dict]:
    """Items per second of each form with each number of workers."""
    write_raw(crops.cache, folder / "raw.npy")
    forms = {"cache": crops, "raw memory map": Stored(crops, folder / "raw.npy")}
    if has("zarr"):
        write_zarr(crops.cache, folder / "frames.zarr")
        forms["Zarr"] = InZarr(crops, folder / "frames.zarr")
    forms["complete frames"] = Complete(crops)
    rates = {(workers, name): [] for workers in args.num_workers for name in forms}
    for _ in range(args.rounds):
        for (workers, name), so_far in rates.items():
            batch_size = 1 if name == "complete frames" else args.batch_size  # of 93 MB each, on FMI's grid
            so_far.append(rate(forms[name], batch_size, workers, args.seconds))
    costs = {name: min(cost(form) for _ in range(args.rounds)) for name, form in forms.items()}
    return [
        {"workers": str(workers), **{f"{name} /s": median(rates[workers, name]) for name in forms}}
        for workers in args.num_workers
    ] + [{"workers": "CPU ms", **{f"{name} /s": 1e3 * seconds for name, seconds in costs.items()}}]


def cost(form: Sequences) -> float:
    """Processor seconds of all threads that an item costs, which other work on the machine hardly changes."""
    indices = form.order(1, 0)[:ITEMS].tolist()
    started = time.process_time()
    for index in indices:
        form[index]
    return (time.process_time() - started) / len(indices)


def build_parser() -> argparse.ArgumentParser:
    """Define the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--days", type=int, default=30, help="days of 288 frames to generate")
    parser.add_argument("--size", type=int, nargs=2, default=[1226, 760], help="height and width, by default FMI's")
    parser.add_argument("--batch_size", type=int, default=6, help="sequences per batch")
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 2, 4], help="processes that load data")
    parser.add_argument("--seconds", type=float, default=4.0, help="time to read for in each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each form and number of workers")
    parser.add_argument("--folder", help="where the archive is made; the default is a temporary folder")
    return parser


def run(args: argparse.Namespace) -> None:
    """Generate an archive, measure, print the tables, write the numbers."""
    check_at_least(args, 1, "days", "batch_size", "rounds")
    check_at_least(args, 0, "num_workers")
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        wet = write_archive(folder, args.days, *args.size)
        crops, packing = measure_packing(folder)
        packing |= {"wet %": 100 * wet}
        print(table([packing]), flush=True)
        rows = measure(crops, folder, args)
    finally:
        shutil.rmtree(folder)
    print(f"crops of 128 pixels, {SEQ_LEN} frames, batches of {args.batch_size}")
    print(table(rows))
    print(CAVEAT)
    write_numbers(args, packing=packing, rows=rows)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables, write the numbers."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    with exit_on_input_error():
        run(args)


if __name__ == "__main__":
    main()
