"""Packages that only some formats need; the extra `radar` has them all."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from utils.errors import InputError


def has(package: str) -> bool:
    """Whether a package is installed."""
    return find_spec(package) is not None


def needed(package: str, reader: str) -> ModuleType:
    """Import a package; raise `InputError` if it is not installed."""
    if not has(package):
        raise InputError(f"{reader} needs the package {package}: pip install {package}.")
    return import_module(package)
