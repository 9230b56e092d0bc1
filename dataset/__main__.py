"""The data sets from the command line: `python -m dataset COMMAND ...`."""

import argparse
import sys
from importlib import import_module

from utils.errors import exit_on_input_error
from utils.log import start_logging

COMMANDS = {
    "download": ("dataset.sevir.download", "fetch SEVIR"),
    "prepare": ("dataset.published.prepare", "make the files of Shanghai, MeteoNet and CIKM from their raw archives"),
    "pack": ("dataset.sevir.packed", "shrink SEVIR once to the resolution of the training"),
    "check": ("dataset.check", "find what is wrong with a data set, and exclude it"),
    "synthetic": ("dataset.synthetic.writer", "write synthetic storms in SEVIR's layout"),
}


def main(argv: list[str] | None = None) -> None:
    """Run a command; `python -m dataset COMMAND -h` tells its options."""
    commands = "\n".join(f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m dataset",
        description=f"{main.__doc__}\n\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    argv = sys.argv[1:] if argv is None else argv
    module, _ = COMMANDS[parser.parse_args(argv[:1]).command]
    start_logging()
    with exit_on_input_error():
        import_module(module).main(argv[1:])


if __name__ == "__main__":
    main()
