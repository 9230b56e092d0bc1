"""Command-line options from the fields of settings dataclasses."""

import argparse
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


def check_bounds(settings) -> None:
    """Raise `InputError` for a number outside the bounds of its option."""
    for one in options_of(settings):
        value = getattr(settings, one.name)
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_number(one, number)


def _check_number(one: Field, number: float) -> None:
    rules = one.metadata
    low, high, limit = rules.get("at_least"), rules.get("at_most"), rules.get("below")
    if limit is None and isinstance(number, int):
        high = LARGEST if high is None else high
    wrong = number != number or (low is not None and number < low)
    if wrong or (high is not None and number > high) or (limit is not None and number >= limit):
        bounds = {"at least": low, "at most": high, "below": limit}
        said = " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)
        raise InputError(f"{one.name} must be {said or 'a number'}, not {number}.")


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
