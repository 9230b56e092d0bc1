"""Folders of checkpoints, which are complete or absent.

A training writes, in its `checkpoints/` folder,

    ckpt-<step>/weights.safetensors   averaged (EMA) weights, which are evaluated; the settings are in its metadata
    ckpt-<step>/training.pt           what resuming needs besides: raw weights, optimiser, progress
    ckpt-<step>/manifest.json         format version, sizes and SHA-256 of the two
    best.safetensors                  averaged weights of the best validation so far
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import InputError
from utils.files import flush_to_disk
from utils.weights import FORMAT, FORMAT_KEY, DamagedError, check_format, write_weights

LOG = logging.getLogger(__name__)
WEIGHTS, TRAINING, BEST, MANIFEST = "weights.safetensors", "training.pt", "best.safetensors", "manifest.json"
_PREFIX = "ckpt-"
_LARGEST_MANIFEST = 2**16  # bytes


def save_checkpoint(folder: Path, step: int, weights: dict[str, Tensor], metadata: dict, training: dict) -> Path:
    """Write `ckpt-<step>` into an existing folder, or replace it there."""
    final = folder / f"{_PREFIX}{step}"
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()  # not its parents: a folder that has vanished may be a disk that is gone
        write_weights(temporary / WEIGHTS, weights, metadata)
        with (temporary / TRAINING).open("wb") as file:
            torch.save(training, file)
        manifest = {FORMAT_KEY: FORMAT, "files": {name: _describe(temporary / name) for name in (WEIGHTS, TRAINING)}}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*temporary.iterdir(), temporary]:
            flush_to_disk(path)
        if final.exists():
            _delete(final)
        os.replace(temporary, final)
        flush_to_disk(folder)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot write checkpoint {final}: {_reason(error)}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _reason(error: BaseException) -> str:
    """Find the system's message, which PyTorch's writer hides behind its own."""
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(error)


def verify(path: Path) -> None:
    """Compare a `ckpt-<step>` folder with its manifest; raises `DamagedError` if they differ."""
    manifest = _read_manifest(path)
    for name in (WEIGHTS, TRAINING):
        expected = manifest.get(name)
        try:
            found = _describe(path / name)
        except OSError as error:
            raise DamagedError(f"checkpoint {path} is damaged: {name}: {error.strerror}.") from None
        if found != expected:
            what = "bytes" if not isinstance(expected, dict) or found["bytes"] != expected.get("bytes") else "sha256"
            raise DamagedError(f"checkpoint {path} is damaged: the {what} of {name} differ from its {MANIFEST}.")


def _read_manifest(path: Path) -> dict:
    """Read sizes and hashes of a checkpoint's files."""
    try:
        with (path / MANIFEST).open("rb") as file:
            manifest = json.loads(file.read(_LARGEST_MANIFEST))
    except OSError as error:
        raise DamagedError(f"checkpoint {path} is damaged: {MANIFEST}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        manifest = None
    if not (isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)):
        raise DamagedError(f"checkpoint {path} is damaged: its {MANIFEST} is not what was written.")
    check_format(path, manifest)
    return manifest["files"]


def _describe(path: Path) -> dict[str, int | str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def newest_whole(folder: Path) -> Path | None:
    """Find the newest checkpoint that verifies; None if the folder has no checkpoint.

    Damaged checkpoints are skipped and logged. Raises `InputError` if all are damaged, because only the user should
    decide to begin anew.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            verify(path)
        except DamagedError as error:
            LOG.warning("skipped: %s", error)
        else:
            return path
    if found:
        raise InputError(f"every checkpoint in {folder} is damaged; delete the folder to begin from the start.")
    return None


def keep_latest(folder: Path, number: int) -> None:
    """Delete all but the latest `number` checkpoints."""
    for old in checkpoints(folder)[:-number]:
        _delete(old)


def drop_leftovers(folder: Path) -> None:
    """Delete the temporary files of a killed run."""
    for old in folder.glob(f".{_PREFIX}*"):
        shutil.rmtree(old, ignore_errors=True)
    for old in folder.glob(f".{Path(BEST).stem}.*"):
        old.unlink(missing_ok=True)


def drop_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps, which a run repeats after going back."""
    for later in checkpoints(folder):
        if step_of(later) > step:
            LOG.info("deleting %s: this run has gone on from an earlier step", later)
            _delete(later)


def _delete(path: Path) -> None:
    """Delete a checkpoint so that no reader ever meets a part of it.

    If the system refuses, the checkpoint or a hidden leftover stays.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}.old")
    with contextlib.suppress(OSError):
        os.replace(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, oldest step first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint."""
    return int(path.name.removeprefix(_PREFIX))


def is_name(milestone: str) -> bool:
    """Return whether a milestone is `best`, `latest` or a step, and no path."""
    return milestone in ("best", "latest") or milestone.isdecimal()


def locate(milestone: str, folder: Path) -> Path:
    """Return the path of a milestone's weights, which need not exist.

    `folder` holds the checkpoints of the run.
    """
    if milestone == "best":
        return folder / BEST
    if milestone == "latest":
        return (checkpoints(folder) or [folder / f"{_PREFIX}*"])[-1] / WEIGHTS
    if milestone.isdecimal():
        return folder / f"{_PREFIX}{milestone}" / WEIGHTS
    path = Path(milestone)
    return path / WEIGHTS if path.is_dir() else path


def find_weights(milestone: str, folder: Path) -> Path:
    """Find the weights file of a milestone.

    A milestone is a path, `best`, `latest` or a step of the run whose checkpoints are in `folder`. Raises `InputError`
    if there is no such file.
    """
    return existing(locate(milestone, folder), f"weights {milestone}")


def existing(path: Path, asked_by: str) -> Path:
    """Return the path if the file exists.

    Otherwise raise an `InputError` that names the option and the steps that the folder has.
    """
    if path.is_file():
        return path
    found = "; it is a folder, name a file in it" if path.is_dir() else ""
    for folder in (path.parent, path.parent.parent):
        if steps := [str(step_of(saved)) for saved in checkpoints(folder)]:
            found = f"; {folder} has the steps {', '.join(steps)}{' and best' if (folder / BEST).is_file() else ''}"
    raise InputError(f"{asked_by}: there is no file {path}{found}.")
