"""Sequences per second from HDF5 files and from their packed cache.

    python -m benchmarks.speed.data [--size 384] [--img_size 128] [--num_workers 0 2 4] [--seconds 4] [--rounds 3] \
        [--json result.json]

The data are generated storms. Both forms give the same items: 25 frames read, resized from --size to --img_size and
scaled, in shuffled batches as a training asks for them. They are read in turn, each turn with new workers. What workers
have read ahead before the clock starts is not counted.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.speed.measuring import arguments, check_at_least, table, write_numbers
from dataset.sevir.packed import open_packed, pack
from dataset.sevir.reader import Sevir
from dataset.synthetic.writer import write_sevir
from diffcast.loading import TrainingBatches, load_batches
from utils.errors import InputError, exit_on_input_error

SEQ_LEN = 25
ENDLESS = 10**9  # batches
PREFETCHED = 4  # batches that each worker of `load_batches` reads ahead
CAVEAT = (
    "The files were written a moment ago and are in memory: this is the cost of decoding, resizing and copying.\n"
    "A cold disk comes on top, for the first epoch, or for all if the data do not fit into memory."
)


def rate(dataset: Dataset, batch_size: int, workers: int, seconds: float) -> float:
    """Sequences per second over at least so many seconds."""
    endless = TrainingBatches(dataset, batch_size, 0, 0, ENDLESS)
    batches = load_batches(dataset, endless, workers, torch.device("cpu"))
    per_turn = max(1, workers)  # workers deliver in turn
    drop(batches, per_turn * (PREFETCHED if workers else 1))
    number, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or number == 0:
        drop(batches, per_turn)
        number += per_turn
    return number * batch_size / elapsed


def drop(batches: Iterator[tuple[Tensor, Tensor]], number: int) -> None:
    """Take so many batches and leave them."""
    for _ in range(number):
        next(batches)


def measure(
    folder: Path, img_size: int, batch_size: int, workers: list[int], seconds: float, rounds: int
) -> list[dict]:
    """Measure both forms with each number of workers."""
    direct = Sevir(folder, "train", img_size, SEQ_LEN)
    packed = open_packed("sevir", "train", folder, img_size, SEQ_LEN, None, "official")
    if batch_size > len(direct):
        raise InputError(f"--batch_size {batch_size} exceeds the {len(direct)} sequences; give more --events.")
    rates = {(number, kind): [] for number in workers for kind in ("hdf5", "packed")}
    for _ in range(rounds):
        for (number, kind), so_far in rates.items():
            so_far.append(rate(packed if kind == "packed" else direct, batch_size, number, seconds))
    return [row(number, rates[number, "hdf5"], rates[number, "packed"]) for number in workers]


def row(workers: int, hdf5: list[float], packed: list[float]) -> dict:
    """Median and highest rates of both forms in sequences per second."""
    return {
        "workers": str(workers),
        "HDF5 seq/s": statistics.median(hdf5),
        "best HDF5": max(hdf5),
        "packed seq/s": statistics.median(packed),
        "best packed": max(packed),
        "times faster": statistics.median(packed) / statistics.median(hdf5),
    }


def build_parser() -> argparse.ArgumentParser:
    """Define the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--events", type=int, default=12, help="events of 49 frames to generate")
    parser.add_argument("--size", type=int, default=384, help="pixels of the stored frames")
    parser.add_argument("--img_size", type=int, default=128, help="pixels of the frames that are read")
    parser.add_argument("--batch_size", type=int, default=6, help="sequences per batch")
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 2, 4], help="processes that load data")
    parser.add_argument("--seconds", type=float, default=4.0, help="time to read for in each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each form and number of workers")
    return parser


def run(args: argparse.Namespace) -> None:
    """Generate data, measure, print the table, write the numbers."""
    check_at_least(args, 1, "batch_size", "rounds")
    check_at_least(args, 0, "num_workers")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sevir(folder, args.events, args.size, args.img_size)
        pack("sevir", folder, args.img_size)
        rows = measure(folder, args.img_size, args.batch_size, args.num_workers, args.seconds, args.rounds)
    print(
        f"{SEQ_LEN} frames, {args.size} x {args.size} in HDF5, {args.img_size} x {args.img_size} packed, batches of "
        f"{args.batch_size}, {torch.get_num_threads()} thread(s) in the process itself"
    )
    print(table(rows))
    print(CAVEAT)
    write_numbers(args, rows=rows)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the numbers."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    with exit_on_input_error():
        run(args)


if __name__ == "__main__":
    main()
