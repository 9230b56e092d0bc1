"""Folders of results that belong to one set of settings each, so that no results are mixed or replaced."""

import json
import logging
import os
import re
import shutil
from itertools import count
from pathlib import Path

from utils.errors import InputError
from utils.files import flush_to_disk, replacing

LOG = logging.getLogger(__name__)
IDENTITY = "identity.json"


def own_folder(wanted: Path, identity: dict) -> Path:
    """The folder of the results with this identity (JSON-ready): `wanted`, `wanted_2`, `wanted_3` ...

    It is the one that holds this identity, otherwise the first that does not exist yet or is empty. Of several
    processes that ask at once with different identities, each gets another folder. What a folder holds is never
    changed. Raises `InputError` if the folder cannot be created.
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
    """What the identity in a folder and another one differ in, as `name there / here`."""
    there = _identity_in(folder)
    return "; ".join(dict.fromkeys(_differences(there, identity))) if there else f"it has no {IDENTITY}"


def _found(wanted: Path, identity: dict) -> Path | None:
    name = re.compile(re.escape(wanted.name) + r"(_\d+)?")
    folders = sorted(path.parent for path in wanted.parent.glob(f"*/{IDENTITY}") if name.fullmatch(path.parent.name))
    return next((folder for folder in folders if _identity_in(folder) == identity), None)


def _created(wanted: Path, identity: dict) -> Path:
    """A new folder, or the one that another process has just created with this identity."""
    staged = wanted.with_name(f".{wanted.name}.{os.getpid()}")
    staged.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(staged / IDENTITY) as temporary:
            temporary.write_text(json.dumps(identity, indent=1, sort_keys=True))
        for number in count(1):
            folder = wanted.with_name(f"{wanted.name}_{number}") if number > 1 else wanted
            if _renamed(staged, folder) or _identity_in(folder) == identity:
                return folder
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _renamed(staged: Path, folder: Path) -> bool:
    """Rename a folder unless the new name is taken. To rename is atomic, and the identity is there from the start."""
    try:
        os.rename(staged, folder)  # which replaces an empty folder, and nothing else
    except OSError:
        if not os.path.lexists(folder):
            raise
        return False
    flush_to_disk(folder.parent)
    return True


def _identity_in(folder: Path) -> dict:
    """The identity of what a folder holds; nothing if there is none that can be read."""
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
