"""Weights in safetensors files, with the settings that they belong to.

A file carries a SHA-256 of its content in its own header, so that it verifies when it travels alone.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import InputError
from utils.files import replacing
from utils.foreign import unreadable

FORMAT = 2
FORMAT_KEY = "format"
_METADATA_KEY, _HASH_KEY = "diffcast", "sha256"  # in the header, and in the JSON under the former


class DamagedError(InputError):
    """A checkpoint differs from what was written."""


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict) -> None:
    """Write weights and JSON-ready `metadata`; a failure leaves no part."""
    with replacing(path) as temporary:
        write_weights(temporary, weights, metadata)


def write_weights(path: Path, weights: dict[str, Tensor], metadata: dict) -> None:
    """Write in place, where a failure may leave a part; see `save_weights`."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # All under one key, for safetensors writes several in an order that changes from file to file.
    described = metadata | {FORMAT_KEY: FORMAT, _HASH_KEY: _hash_of(weights, metadata)}
    path.write_bytes(save(weights, {_METADATA_KEY: json.dumps(described)}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read weights and metadata.

    Raises `InputError` for a file that is missing, damaged or not of this project.
    """
    with _opened(path) as (file, described):
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata = _metadata_of(path, described)
    if described.get(_HASH_KEY) != _hash_of(weights, metadata):
        raise DamagedError(f"checkpoint {path} is damaged: its SHA-256 is not the one that was written.")
    return weights, metadata


def load_metadata(path: Path) -> dict:
    """Read the metadata alone, without verifying the file."""
    with _opened(path) as (_, described):
        return _metadata_of(path, described)


def check_format(path: Path, header: dict) -> None:
    """Raise `InputError` for a format of the future, and `DamagedError` for one that never was."""
    version = header.get(FORMAT_KEY)
    if type(version) is int and version > FORMAT:
        raise InputError(
            f"checkpoint {path} has format {version}, and this version of DiffCast reads formats up to {FORMAT}: "
            "use the version that wrote it, or a newer one."
        )
    if version != FORMAT:
        raise DamagedError(f"checkpoint {path} is damaged: its format version is {version!r}.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict]]:
    """Open a file; yields it and the JSON in its header."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file, _described(path, file)
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from None


def _described(path: Path, file: safe_open) -> dict:
    try:
        described = json.loads((file.metadata() or {})[_METADATA_KEY])
    except (KeyError, ValueError, RecursionError):
        described = None
    if not isinstance(described, dict):
        raise InputError(f"checkpoint {path} was not written by this project: it lacks its settings.")
    return described


def _metadata_of(path: Path, described: dict) -> dict:
    """Return the metadata that were given to `save_weights`."""
    check_format(path, described)
    return {name: value for name, value in described.items() if name not in (FORMAT_KEY, _HASH_KEY)}


def _hash_of(weights: dict[str, Tensor], metadata: dict) -> str:
    digest = hashlib.sha256(json.dumps(metadata).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
