"""The command line of `run.py`, made from the fields of its settings."""

import argparse
import sys

from diffcast.commandline.settings import DataSettings, Purpose
from diffcast.evaluation.loop import EvaluationSettings
from diffcast.forecaster import Architecture
from diffcast.training.settings import TrainingSettings
from utils.options import add_options


class Parser(argparse.ArgumentParser):
    """A parser that also reads options from `@file`.

    A line may hold several options, and `#` begins a comment.
    """

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return arg_line.split("#")[0].split()

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        try:
            return super().parse_known_args(args, namespace)
        except (ValueError, RecursionError) as error:  # of a file that is no text, or that includes itself
            files = ", ".join(word for word in args if word.startswith("@"))
            self.error(f"can't read options from {files}: {error}")


def build_parser(description: str) -> argparse.ArgumentParser:
    """Build the parser.

    Parsed arguments hold only what the user gave, see `diffcast.commandline.settings.read`.
    """
    parser = Parser(
        usage="%(prog)s [options] [@file of options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        fromfile_prefix_chars="@",
    )
    groups = {
        "run": Purpose,
        "model": Architecture,
        "data": DataSettings,
        "training": TrainingSettings,
        "forecasts and evaluation": EvaluationSettings,
    }
    made = {title: parser.add_argument_group(title) for title in groups}
    rare = parser.add_argument_group("rarely needed")
    for title, settings in groups.items():
        leave_out = ("seed",) if settings is EvaluationSettings else ()  # the training's
        add_options(made[title], settings, rare, leave_out)
    return parser
