"""Command-line options from the fields of settings dataclasses."""

import argparse
import math
from dataclasses import MISSING, Field, field, fields
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from utils.errors import InputError

LARGEST = 2**31 - 1  # of whole numbers, unless their option says otherwise
_RULES = ("flag", "rare", "at_least", "at_most", "below")


def option(default, help: str, **rules):
    """Define a field that is an option of a command line.

    Rules are `flag` (its spelling, otherwise `--` and the field's name), `rare` (it is listed at the end of the help),
    the bounds `at_least`, `at_most` and `below` of a number, or keywords of `argparse.ArgumentParser.add_argument`.
    """
    return field(default=default, metadata={"help": help, **rules})


def add_options(group, settings: type, rare=None, leave_out: tuple[str, ...] = ()) -> None:
    """Add the options of a settings dataclass to a parser or group.

    Rare options go to the group `rare`.

    An option that the user does not give is absent from the parsed arguments.
    """
    hints = get_type_hints(settings)
    for one in options_of(settings):
        if one.name not in leave_out:
            chosen = rare if rare is not None and one.metadata.get("rare") else group
            keywords = {key: value for key, value in one.metadata.items() if key not in _RULES}
            keywords = _form(hints[one.name]) | keywords | {"help": _help(one), "default": argparse.SUPPRESS}
            chosen.add_argument(one.metadata.get("flag", f"--{one.name}"), **keywords)


def options_of(settings) -> list[Field]:
    """List the fields of a settings dataclass that are options."""
    return [one for one in fields(settings) if "help" in one.metadata]


def build(settings: type, options: dict):
    """Build a settings dataclass from the options that it has."""
    values = {one.name: options[one.name] for one in fields(settings) if one.name in options}
    return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def check_values(settings) -> None:
    """Raise `InputError` for a value outside the bounds or choices of its option."""
    for one in options_of(settings):
        value = getattr(settings, one.name)
        for part in value if isinstance(value, tuple) else [value]:
            _check_value(one, part)


def _check_value(one: Field, value) -> None:
    choices = one.metadata.get("choices")
    if isinstance(value, str) and choices and value not in choices:
        raise InputError(f"{one.name} must be one of {', '.join(choices)}, not {value}.")
    if type(value) in (int, float) and (broken := _broken_bound(one, value)):
        raise InputError(f"{one.name} must be {broken}, not {value}.")


def _broken_bound(one: Field, number: float) -> str:
    """The first bound that a number breaks, in words."""
    low, limit = one.metadata.get("at_least"), one.metadata.get("below")
    high = one.metadata.get("at_most", LARGEST if type(number) is int else None)
    if isinstance(one.default, int) and type(number) is float:
        return "a whole number"
    if number != number:
        return "a number"
    if low is not None and number < low:
        return f"at least {low}"
    if limit is not None and number >= limit:
        return "finite" if limit == math.inf else f"below {limit}"
    return f"at most {high}" if high is not None and number > high else ""


def _form(hint) -> dict:
    """How argparse reads a value of a type."""
    if isinstance(hint, UnionType):  # with None
        hint = get_args(hint)[0]
    if hint is bool:
        return {"action": "store_true"}
    if get_origin(hint) is tuple:
        return {"type": get_args(hint)[0], "nargs": "+"}
    return {"type": hint}


def _help(one: Field) -> str:
    default = one.default
    if default is MISSING or default is None or default is False or default == ():
        return one.metadata["help"]
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{one.metadata['help']} (default: {shown})"
