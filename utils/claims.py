"""A folder for each set of settings, so that no results are mixed or replaced."""

import json
import logging
import os
import re
from itertools import count
from pathlib import Path

from utils.errors import InputError

LOG = logging.getLogger(__name__)
IDENTITY = "identity.json"


def own_folder(wanted: Path, identity: dict) -> Path:
    """Find or create the folder of the results with a JSON-ready identity.

    Candidates are `wanted`, `wanted_2`, `wanted_3` and so on. The folder that holds this identity is taken, otherwise
    the first that does not exist yet or is empty. Processes that ask at the same time with different identities get
    different folders. The contents of a folder are never changed. Raises `InputError` if the folder cannot be created.
    """
    identity = json.loads(json.dumps(identity))
    try:
        folder = _found(wanted, identity) or _created(wanted, identity)
    except OSError as error:
        raise InputError(f"cannot create {wanted} for the results: {error.strerror or error}.") from None
    if folder != wanted:
        LOG.info("%s holds other results (%s); these go to %s", wanted, difference(wanted, identity), folder.name)
    return folder


def difference(folder: Path, identity: dict) -> str:
    """Describe how the identity in a folder differs from another, as `name there / here`."""
    there = _identity_in(folder)
    return "; ".join(dict.fromkeys(_differences(there, identity))) if there else f"it has no {IDENTITY}"


def _found(wanted: Path, identity: dict) -> Path | None:
    name = re.compile(re.escape(wanted.name) + r"(_\d+)?")
    folders = sorted(path.parent for path in wanted.parent.glob(f"*/{IDENTITY}") if name.fullmatch(path.parent.name))
    return next((folder for folder in folders if _identity_in(folder) == identity), None)


def _created(wanted: Path, identity: dict) -> Path:
    """Claim a new or empty folder.

    Another process with the same identity may have claimed it at the same time.
    """
    for number in count(1):
        folder = wanted.with_name(f"{wanted.name}_{number}") if number > 1 else wanted
        if folder.exists() and not folder.is_dir():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if _claimed(folder, identity) or _identity_in(folder) == identity:
            return folder


def _claimed(folder: Path, identity: dict) -> bool:
    """Write the identity into a folder if it is empty; of several processes, one succeeds."""
    if any(not path.name.startswith(".") for path in folder.iterdir()):
        return False
    path, temporary = folder / IDENTITY, folder / f".{IDENTITY}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(identity, indent=1, sort_keys=True))
        os.link(temporary, path)  # appears complete, and never replaces another
    except FileExistsError:
        return False
    except OSError:  # on a disk without hard links
        if path.exists():
            return False
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _identity_in(folder: Path) -> dict:
    """Read the identity of a folder's results; empty if it is missing or unreadable."""
    try:
        identity = json.loads((folder / IDENTITY).read_text())
    except (OSError, ValueError):
        return {}
    return identity if isinstance(identity, dict) else {}


def _differences(there: dict, here: dict) -> list[str]:
    found = []
    for key in there | here:
        values = there.get(key), here.get(key)
        if all(isinstance(value, dict) for value in values):
            found += _differences(*values)
        elif values[0] != values[1]:
            found.append(f"{key} {values[0]} / {values[1]}")
    return found
