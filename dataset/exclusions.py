"""Bad data that loaders leave out: `exclusions.txt` in the data folder.

A data set that is a single file has `NAME.exclusions.txt` next to it. A line holds the id of an event, a window or a
frame, then a tab and why it is there. Lines that begin with `#` are remarks. `python -m dataset check --fix` writes
the file. It may also be written by hand.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from dataset.hdf5 import reason_of
from utils.errors import InputError
from utils.files import replacing

EXCLUSIONS = "exclusions.txt"


def exclusions_path(data_path: str | Path) -> Path:
    """Path of the exclusions of a data folder or of a file."""
    path = Path(data_path)
    return path.with_name(f"{path.stem}.{EXCLUSIONS}") if os.path.isfile(path) else path / EXCLUSIONS


def read_exclusions(data_path: str | Path) -> dict[str, str]:
    """Read excluded ids and their reasons, which may be empty.

    Raises `InputError` if the file cannot be read as UTF-8.
    """
    path = exclusions_path(data_path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path} ({reason_of(error, path)}); it should hold ids, one a line.") from None
    lines = (line.partition("\t") for line in text.splitlines() if not line.startswith("#"))
    return {excluded.strip(): reason.strip() for excluded, _, reason in lines if excluded.strip()}


def write_exclusions(data_path: str | Path, exclusions: Mapping[str, str]) -> Path:
    """Replace the file by these ids and reasons and return its path."""
    path = exclusions_path(data_path)
    lines = (f"{excluded}\t{exclusions[excluded]}\n" for excluded in sorted(exclusions))
    with replacing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    return path
