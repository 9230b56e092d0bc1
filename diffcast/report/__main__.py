"""Write the report of an evaluation or the comparison of several.

    python -m diffcast.report Exps/run/evaluation_1000
    python -m diffcast.report Exps/runA Exps/runB --out report.html --names "small" "large"
    python -m diffcast.report Exps/runA Exps/runA:trend Exps/runA:dressed

The others are compared with the first run. `folder:forecast` names a baseline of an evaluation.
"""

import argparse
import sys
from pathlib import Path

from diffcast.report import write_comparison, write_report
from utils.errors import InputError, exit_on_input_error


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcast.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="evaluation folders, or run folders that hold one evaluation")
    parser.add_argument("--out", type=Path, help="page to write (default: report.html, in the folder of a single run)")
    parser.add_argument("--names", nargs="+", help="names of the runs in the report")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the page."""
    options = build_parser().parse_args(arguments)
    with exit_on_input_error():
        sys.stdout.write(f"{write(options)}\n")


def write(options: argparse.Namespace) -> Path:
    """Write the page that the options ask for, and return its path."""
    if len(options.runs) > 1:
        return write_comparison(options.runs, options.out or Path("report.html"), options.names)
    if options.names:
        raise InputError("--names is for the comparison of several runs; leave it out.")
    return write_report(options.runs[0], options.out)


if __name__ == "__main__":
    main()
