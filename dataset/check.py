"""Check a data set and report its faults.

    python -m dataset check --dataset sevir --data_path DIR
    python -m dataset check --dataset meteo --data_path meteo.h5 --fix

The check reads every file, event, window and frame. The exit status is 1 if there are faults. `--fix` adds what is at
fault to a list of exclusions, which all loaders and later checks leave out. If two items share data, the one of the
later split stays, so that scores stay comparable.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dataset.checking import Report, fix, format_report
from dataset.frames import check as check_frames
from dataset.published import check as check_h5
from dataset.published.reader import LAYOUTS
from dataset.sevir import check as check_sevir
from dataset.sevir.catalog import SCHEMES
from dataset.sevir.reader import Sevir, SevirLR
from utils.errors import InputError
from utils.processors import loading_processes

LOG = logging.getLogger(__name__)

READERS: dict[str, type[Sevir]] = {"sevir": Sevir, "synthetic": Sevir, "sevir_lr": SevirLR}
# data path and reading processes; those of SEVIR's layout take the split scheme too
CHECKS: dict[str, Callable[..., Report]] = {
    **{name: partial(check_sevir.check, reader) for name, reader in READERS.items()},
    **{name: partial(check_h5.check, name) for name in LAYOUTS},
    "frames": check_frames.check,
}


def check(dataset: str, data_path: str | Path, split_scheme: str | None = None, workers: int = 0) -> Report:
    """Check all of a data set.

    Raises `InputError` if there is nothing to check. `split_scheme` (None: official) is for data sets in SEVIR's layout
    alone.
    """
    if split_scheme is None:
        return CHECKS[dataset](data_path, workers=workers)
    if dataset not in READERS:
        raise InputError(f"split {split_scheme} is for {', '.join(READERS)}; leave it out for the data set {dataset}.")
    return CHECKS[dataset](data_path, split_scheme=split_scheme, workers=workers)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=tuple(CHECKS), default="sevir", help="kind of data (default: %(default)s)")
    parser.add_argument("--data_path", type=Path, required=True, help="the same path as for training")
    parser.add_argument(
        "--split", dest="split_scheme", choices=tuple(SCHEMES), help="dates of SEVIR's splits (default: official)"
    )
    parser.add_argument("--fix", action="store_true", help="exclude what is at fault")
    parser.add_argument("--num_workers", type=int, default=4, help="processes that read (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Check a data set and exit with status 1 if faults remain."""
    args = build_parser().parse_args(arguments)
    report = check(args.dataset, args.data_path, args.split_scheme, loading_processes(args.num_workers))
    LOG.info("%s", format_report(report))
    faults = fix(report) if args.fix and report.faults else report.faults
    if faults:
        sys.exit(1)
