"""Events that the loaders leave out because their data are bad: `exclusions.txt` beside the catalogue.

A line holds an event's id, then a tab and why it is there; lines that begin with `#` are remarks.
`python -m dataset.check --fix` writes the file; it may also be written by hand.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from utils.errors import InputError
from utils.files import replacing

EXCLUSIONS = "exclusions.txt"
MAX_BYTES = 2**24  # two hundred thousand ids with their reasons; SEVIR has twenty thousand


def read_exclusions(data_path: str | Path) -> dict[str, str]:
    """Ids and reasons (empty if none is given); nothing if there is no file.

    Raises `InputError` if the file cannot be read as UTF-8 or is larger than `MAX_BYTES`.
    """
    path = Path(data_path, EXCLUSIONS)
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path} ({error}); it should hold event ids, one a line.") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes; it should hold event ids, one a line.")
    lines = (line.partition("\t") for line in text.splitlines() if not line.startswith("#"))
    return {event_id.strip(): reason.strip() for event_id, _, reason in lines if event_id.strip()}


def write_exclusions(data_path: str | Path, exclusions: Mapping[str, str]) -> Path:
    """Replace the file by these ids and reasons, whole or not at all; returns its path."""
    path = Path(data_path, EXCLUSIONS)
    with replacing(path) as temporary:
        lines = (f"{event_id}\t{exclusions[event_id]}\n" for event_id in sorted(exclusions))
        temporary.write_text("".join(lines), encoding="utf-8")
    return path


def fingerprint(data_path: str | Path) -> str | None:
    """SHA-256 of the excluded ids, in hexadecimal; None if there are none."""
    ids = sorted(read_exclusions(data_path))
    return hashlib.sha256("\n".join(ids).encode()).hexdigest() if ids else None
