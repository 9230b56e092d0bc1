"""Checkpoints: written whole or not at all, and loaded without executing anything from them.

A training writes, in its `checkpoints/` folder,

    ckpt-<step>/weights.safetensors   averaged (EMA) weights, what is evaluated; the settings are in its metadata
    ckpt-<step>/training.pt           what resuming needs besides: raw weights, optimiser, progress
    best.safetensors                  averaged weights of the best validation so far
"""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import InputError
from utils.files import replacing

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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[_METADATA_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
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
    """Write `ckpt-<step>`; a step that is already there is left as it is."""
    final = folder / f"ckpt-{step}"
    if final.exists():
        return final
    temporary = folder / f".ckpt-{step}.{os.getpid()}"
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
    if not path.is_file():
        raise InputError(f"--ckpt_milestone {milestone}: there is no file {path}.")
    return path


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
