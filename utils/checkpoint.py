"""Checkpoints: written whole or not at all, and loaded without executing anything from them.

A training writes, in its `checkpoints/` folder,

    ckpt-<step>/weights.safetensors   averaged (EMA) weights, what is evaluated; the settings are in its metadata
    ckpt-<step>/training.pt           what resuming needs besides: raw weights, optimiser, progress
    best.safetensors                  averaged weights of the best validation so far
"""

import contextlib
import json
import logging
import os
import pickle
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import InputError
from utils.files import replacing

LOG = logging.getLogger(__name__)
WEIGHTS, TRAINING, BEST = "weights.safetensors", "training.pt", "best.safetensors"
_METADATA_KEY = "diffcast"
# What torch.load raises for files that are cut off or no checkpoints, besides pickle.UnpicklingError.
_DAMAGED = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(struct.error, BadZipFile),
)


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict) -> None:
    """Write weights with JSON-ready `metadata` to a safetensors file."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(weights, {_METADATA_KEY: json.dumps(metadata)}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Weights and metadata of `save_weights`; raises `InputError` if the file is missing or not of that kind."""
    with _opened(path) as (file, metadata):
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def load_metadata(path: Path) -> dict:
    """Metadata of `save_weights` alone."""
    with _opened(path) as (_, metadata):
        return metadata


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict]]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file, json.loads((file.metadata() or {})[_METADATA_KEY])
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {path} cannot be read as safetensors: {error}.") from None
    except (KeyError, ValueError):
        raise InputError(f"checkpoint {path} was not written by this project: it lacks its settings.") from None


def load_pickle(path: Path) -> dict:
    """A dictionary of tensors and plain values from a `.pt` file, without executing anything from it."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist.") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"checkpoint {path} is refused: it is damaged, or holds more than tensors and plain values."
        ) from None
    except _DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"checkpoint {path} cannot be read: {reason}.") from None
    if not isinstance(loaded, dict):
        raise InputError(f"checkpoint {path} holds no dictionary of weights.")
    return loaded


def save_checkpoint(folder: Path, step: int, weights: dict[str, Tensor], metadata: dict, training: dict) -> Path:
    """Write `ckpt-<step>`."""
    final = folder / f"ckpt-{step}"
    temporary = folder / f".ckpt-{step}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_weights(temporary / WEIGHTS, weights, metadata)
        torch.save(training, temporary / TRAINING)
        for file in temporary.iterdir():
            _flush_to_disk(file)
        os.replace(temporary, final)
        _flush_to_disk(folder)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot write checkpoint {final}: {getattr(error, 'strerror', None) or error}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def keep_latest(folder: Path, number: int) -> None:
    """Delete all but the latest `number` checkpoints, and what a killed run left half-written."""
    for old in [*checkpoints(folder)[:-number], *folder.glob(".ckpt-*")]:
        shutil.rmtree(old, ignore_errors=True)
    for old in folder.glob(f".{Path(BEST).stem}.*"):
        old.unlink(missing_ok=True)


def drop_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps, which a run that resumes from `step` takes again."""
    for later in checkpoints(folder):
        if int(later.name[5:]) > step:
            LOG.info("deleting %s: this run goes on from step %d", later, step)
            shutil.rmtree(later)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest step first."""
    found = [path for path in folder.glob("ckpt-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def find_weights(milestone: str, folder: Path) -> Path:
    """The weights file that `--ckpt_milestone` means: a path, `best`, `latest` or a step of the run in `folder`."""
    if milestone == "best":
        path = folder / BEST
    elif milestone == "latest":
        path = (checkpoints(folder) or [folder / "ckpt-*"])[-1] / WEIGHTS
    elif milestone.isdigit():
        path = folder / f"ckpt-{milestone}" / WEIGHTS
    else:
        path = Path(milestone)
        path = path / WEIGHTS if path.is_dir() else path
    return existing(path, f"--ckpt_milestone {milestone}")


def existing(path: Path, asked_by: str) -> Path:
    """The path, if there is such a file; otherwise an `InputError` that names the option."""
    if not path.is_file():
        raise InputError(f"{asked_by}: there is no file {path}.")
    return path


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
