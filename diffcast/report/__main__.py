"""Write the report of an evaluation, or of several side by side.

    python -m diffcast.report Exps/run/evaluation_1000
    python -m diffcast.report Exps/runA Exps/runB --out report.html --names "small" "large"
    python -m diffcast.report Exps/runA Exps/runA:trend Exps/runA:dressed

The first run is what the others are compared with. `folder:forecast` names a baseline of an evaluation.
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
    parser.add_argument("--out", type=Path, help="page to write (default: report.html, of one run in its folder)")
    parser.add_argument("--names", nargs="+", help="what the report calls the runs")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the page."""
    options = build_parser().parse_args(arguments)
    with exit_on_input_error():
        sys.stdout.write(f"{write(options)}\n")


def write(options: argparse.Namespace) -> Path:
    """Write what the options ask for; returns the page's path."""
    if len(options.runs) > 1:
        return write_comparison(options.runs, options.out or Path("report.html"), options.names)
    if options.names:
        raise InputError("--names is for the comparison of several runs; leave it out.")
    return write_report(options.runs[0], options.out)


if __name__ == "__main__":
    main()
