"""Cache frames in the form that training reads, before it starts.

    python -m dataset pack --dataset sevir --data_path DIR --img_size 128
    python -m dataset pack --dataset frames --data_path DIR

Frames keep their native resolution, for training on crops, unless --img_size is given. Several machines may pack the
same frames at once and share the work. An interrupted run continues when it is started again, and what has come since
is added.
"""

import argparse
import logging
from pathlib import Path

from dataset.frames.cache.cache import open_cache
from dataset.frames.complete import complete_config
from dataset.sevir.packed import pack, verify
from dataset.synthetic.writer import ensure
from utils.errors import InputError
from utils.processors import loading_processes

LOG = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dataset",
        choices=("sevir", "synthetic", "frames"),
        default="sevir",
        help="kind of data (default: %(default)s)",
    )
    parser.add_argument("--data_path", type=Path, required=True, help="folder with CATALOG.csv or frames.yaml")
    parser.add_argument(
        "--img_size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="side of the frames, or height and width (default: 128, of frames the size that is stored)",
    )
    parser.add_argument("--out", type=Path, help="folder for the caches (default: DATA_PATH/packed)")
    parser.add_argument("--num_workers", type=int, default=4, help="processes that read (default: %(default)s)")
    parser.add_argument("--verify", action="store_true", help="compare the cache of SEVIR with its source afterwards")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Pack a data set and compare it with its source if asked."""
    args = build_parser().parse_args(arguments)
    workers, sizes = loading_processes(args.num_workers), args.img_size
    if args.dataset == "frames":
        _pack_frames(args, sizes, workers)
        return
    if sizes and len(sizes) > 1:
        raise InputError(f"--img_size {' '.join(map(str, sizes))}: {args.dataset} has square frames; give one number.")
    if args.dataset == "synthetic":
        ensure(args.data_path)
    img_size = sizes[0] if sizes else 128
    folder = pack(args.dataset, args.data_path, img_size, args.out, workers)
    LOG.info("the packed cache %s is complete", folder)
    if args.verify:
        wrong = verify(args.dataset, args.data_path, img_size, args.out, workers)
        if wrong:
            raise InputError(
                f"{len(wrong)} events in {folder} differ from their source, the first is {wrong[0]}; "
                "delete the folder and pack again."
            )
        LOG.info("every event equals its source")


def _pack_frames(args: argparse.Namespace, sizes: list[int] | None, workers: int) -> None:
    if args.verify:
        raise InputError("--verify is for sevir and synthetic; the cache of frames notices changed files by itself.")
    if sizes and len(sizes) > 2:
        raise InputError(f"--img_size takes one or two numbers, not {' '.join(map(str, sizes))}.")
    img_size = (sizes[0], sizes[-1]) if sizes else None
    cache = open_cache(complete_config(args.data_path), img_size, args.out, workers)
    LOG.info("the packed cache %s is complete: %d frames", cache.days.folder, len(cache.times))
