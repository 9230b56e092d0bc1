"""The data sets from the command line: `python -m dataset COMMAND ...`."""

import argparse
import sys
from importlib import import_module

from utils.errors import exit_on_input_error
from utils.log import start_logging

COMMANDS = {
    "download": ("dataset.sevir.download", "download SEVIR"),
    "prepare": ("dataset.published.prepare", "convert the raw archives of Shanghai, MeteoNet and CIKM to HDF5"),
    "pack": ("dataset.pack", "cache frames in the form that training reads"),
    "check": ("dataset.check", "find faults in a data set and exclude them from training"),
    "synthetic": ("dataset.synthetic.writer", "write synthetic storms in SEVIR's file layout"),
}


def main(argv: list[str] | None = None) -> None:
    """Run a command."""
    commands = "\n".join(f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m dataset",
        description=f"Get, convert and check data sets.\n\n{commands}",
        epilog="python -m dataset COMMAND -h lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the above")
    argv = sys.argv[1:] if argv is None else argv
    module, _ = COMMANDS[parser.parse_args(argv[:1]).command]
    start_logging()
    with exit_on_input_error():
        import_module(module).main(argv[1:])


if __name__ == "__main__":
    main()
