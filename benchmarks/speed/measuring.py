"""Devices, times, tables and files of numbers, for all benchmarks of speed.

The row of a result is a dictionary from headings to numbers or words. It is printed and written as it is.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from utils.errors import InputError
from utils.files import replacing
from utils.log import format_table
from utils.provenance import provenance

Form = Callable[[], object]


def default_device() -> torch.device:
    """Return the GPU if there is one, otherwise the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(form: Form) -> float:
    """Time a function until the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    form()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(forms: dict[str, Form], rounds: int) -> dict[str, dict[str, float]]:
    """Median and shortest seconds of each function, timed in turn after a warm-up."""
    times = {name: [] for name in forms}
    for _ in range(1 + rounds):
        for name, form in forms.items():
            times[name].append(seconds_of(form))
    return {name: summary(seconds[1:]) for name, seconds in times.items()}


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and shortest of some times."""
    return {"median": statistics.median(seconds), "shortest": min(seconds)}


def table(rows: list[dict]) -> str:
    """Lay out rows, with a column for every heading in any row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return format_table(["", *names[1:]], [[_cell(row.get(name)) for name in names] for row in rows])


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def arguments(description: str) -> argparse.ArgumentParser:
    """Start the command line of a benchmark."""
    parser = argparse.ArgumentParser(
        description=description.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    return parser


def check_at_least(args: argparse.Namespace, least: int, *names: str) -> None:
    """Raise `InputError` for options with a value below a number."""
    for name in names:
        value = getattr(args, name)
        if min(value if isinstance(value, list) else [value]) < least:
            raise InputError(f"--{name} must be at least {least}, not {value}.")


def write_numbers(args: argparse.Namespace, **numbers) -> None:
    """Write settings and numbers to the file of `--json`, if given."""
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        with replacing(args.json) as temporary:
            result = {"about": provenance(), "threads": torch.get_num_threads(), **settings, **numbers}
            temporary.write_text(json.dumps(result, indent=1) + "\n")
