"""Checkpoints: written whole or not at all, and loaded without executing anything from them.

A training writes, in its `checkpoints/` folder,

    ckpt-<step>/weights.safetensors   averaged (EMA) weights, what is evaluated; the settings are in its metadata
    ckpt-<step>/training.pt           what resuming needs besides: raw weights, optimiser, progress
    ckpt-<step>/manifest.json         format version, sizes and SHA-256 of the two
    best.safetensors                  averaged weights of the best validation so far

Safetensors files carry a SHA-256 of their content in their own header, so that they verify when they travel alone.
"""

import contextlib
import hashlib
import json
import logging
import mmap
import os
import pickle
import pickletools
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import InputError
from utils.files import flush_to_disk, replacing
from utils.foreign import may_be_pytorch, what_it_seems

LOG = logging.getLogger(__name__)
WEIGHTS, TRAINING, BEST, MANIFEST = "weights.safetensors", "training.pt", "best.safetensors", "manifest.json"
_PREFIX = "ckpt-"
FORMAT = 2
_METADATA_KEY, _FORMAT_KEY, _HASH_KEY = "diffcast", "format", "sha256"  # in the header, and in its JSON
_LARGEST_MANIFEST = 2**16  # bytes
# What torch.load raises for files that are cut off or no checkpoints, besides pickle.UnpicklingError.
_DAMAGED = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(struct.error, BadZipFile, MemoryError),
)
# Names that torch.save writes for tensors and plain values. PyTorch lets more through, some of which reserve memory.
_NAMES = re.compile(
    r"collections (OrderedDict|defaultdict)|__builtin__ (set|dict|complex)|builtins (set|dict|complex)|"
    r"torch (\w+Storage|Size|device|b?float\d+|u?int\d+|bool|complex\d+)|torch\._utils _rebuild_(tensor_v2|parameter)"
)
_LEGACY_PICKLES = 5  # magic number, protocol, system, object, keys of storages


class DamagedError(InputError):
    """A checkpoint is not what was written."""


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict) -> None:
    """Write weights with JSON-ready `metadata` to a safetensors file."""
    with replacing(path) as temporary:
        _write_weights(temporary, weights, metadata)


def _write_weights(path: Path, weights: dict[str, Tensor], metadata: dict) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # All under one key, for safetensors writes several in an order that changes from file to file.
    described = metadata | {_FORMAT_KEY: FORMAT, _HASH_KEY: _hash_of(weights, metadata)}
    path.write_bytes(save(weights, {_METADATA_KEY: json.dumps(described)}))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Weights and metadata of `save_weights`; raises `InputError` if the file is missing, damaged or foreign."""
    with _opened(path) as (file, described):
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata = _metadata_of(path, described)
    if described.get(_HASH_KEY) != _hash_of(weights, metadata):
        raise DamagedError(f"checkpoint {path} is damaged: its SHA-256 is not the one that was written.")
    return weights, metadata


def load_metadata(path: Path) -> dict:
    """Metadata of `save_weights` alone, unverified."""
    with _opened(path) as (_, described):
        return _metadata_of(path, described)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict]]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file, _described(path, file)
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None


def _described(path: Path, file: safe_open) -> dict:
    try:
        described = json.loads((file.metadata() or {})[_METADATA_KEY])
    except (KeyError, ValueError, RecursionError):
        raise _foreign(path) from None
    if not isinstance(described, dict):
        raise _foreign(path)
    return described


def _metadata_of(path: Path, described: dict) -> dict:
    """Metadata as they were given."""
    _check_format(path, described)
    return {name: value for name, value in described.items() if name not in (_FORMAT_KEY, _HASH_KEY)}


def _foreign(path: Path) -> InputError:
    return InputError(f"checkpoint {path} was not written by this project: it lacks its settings.")


def _check_format(path: Path, header: dict) -> None:
    """Raise `InputError` for a header or manifest of a future format, `DamagedError` for one of none that ever was."""
    version = header.get(_FORMAT_KEY)
    if type(version) is int and version > FORMAT:
        raise InputError(
            f"checkpoint {path} has format {version}, and this version of DiffCast reads formats up to {FORMAT}: "
            "use the version that wrote it, or a newer one."
        )
    if version != FORMAT:
        raise DamagedError(f"checkpoint {path} is damaged: its format version is {version!r}.")


def _hash_of(weights: dict[str, Tensor], metadata: dict) -> str:
    digest = hashlib.sha256(json.dumps(metadata).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_pickle(path: Path) -> dict:
    """A dictionary of tensors and plain values from a `.pt` file, without executing anything from it."""
    try:
        _refuse_bombs(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist.") from None
    except (pickle.UnpicklingError, *_DAMAGED) as error:
        raise _unreadable(path, error) from None
    if not isinstance(loaded, dict):
        raise InputError(f"checkpoint {path} holds no dictionary of weights.")
    return loaded


def _unreadable(path: Path, error: Exception) -> InputError:
    """What to say of a file that is not read as weights."""
    if isinstance(error, OSError) and error.strerror and not path.is_dir():
        return InputError(f"checkpoint {path} cannot be read: {error.strerror}.")
    if isinstance(error, pickle.UnpicklingError) and may_be_pytorch(path):
        return InputError(f"checkpoint {path} is refused: it is damaged, or holds more than tensors and plain values.")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"checkpoint {path} cannot be read: {what_it_seems(path, reason)}.")


def _refuse_bombs(path: Path) -> None:
    """Raise `pickle.UnpicklingError` if loading would take more memory than a few times the file's size."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != b"PK\3\4":
            for _ in range(_LEGACY_PICKLES):
                _check_names(content)
            return
        with ZipFile(file) as archive:
            entries = archive.infolist()
            inflating = any(entry.compress_type != ZIP_STORED for entry in entries)
            if inflating or sum(entry.file_size for entry in entries) > len(content):
                raise pickle.UnpicklingError("an archive that inflates")
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    _check_names(archive.read(entry))


def _check_names(stream) -> None:
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name == "STACK_GLOBAL" or (
            operation.name in ("GLOBAL", "INST") and not _NAMES.fullmatch(argument)
        ):
            raise pickle.UnpicklingError(f"a pickle that asks for {argument}")


def save_checkpoint(folder: Path, step: int, weights: dict[str, Tensor], metadata: dict, training: dict) -> Path:
    """Write `ckpt-<step>` into an existing folder, in place of one that is there."""
    final = folder / f"{_PREFIX}{step}"
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()  # not its parents: a folder that has vanished may be a disk that is gone
        _write_weights(temporary / WEIGHTS, weights, metadata)
        with (temporary / TRAINING).open("wb") as file:
            torch.save(training, file)
        manifest = {_FORMAT_KEY: FORMAT, "files": {name: _describe(temporary / name) for name in (WEIGHTS, TRAINING)}}
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
    """What the system said; PyTorch's writer hides it behind an error of its own."""
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(error)


def verify(path: Path) -> None:
    """Compare a `ckpt-<step>` folder with its manifest; raises `DamagedError` if something is missing or differs."""
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
    """What a checkpoint's files should be."""
    try:
        with (path / MANIFEST).open("rb") as file:
            manifest = json.loads(file.read(_LARGEST_MANIFEST))
    except OSError as error:
        raise DamagedError(f"checkpoint {path} is damaged: {MANIFEST}: {error.strerror}.") from None
    except (ValueError, RecursionError):
        manifest = None
    if not (isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)):
        raise DamagedError(f"checkpoint {path} is damaged: its {MANIFEST} is not what was written.")
    _check_format(path, manifest)
    return manifest["files"]


def _describe(path: Path) -> dict[str, int | str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, None if there is none at all; what it skips is logged.

    Raises `InputError` if there are checkpoints and all of them are damaged: to begin anew is the user's decision.
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
    """Delete what a killed run left half-written."""
    for old in folder.glob(f".{_PREFIX}*"):
        shutil.rmtree(old, ignore_errors=True)
    for old in folder.glob(f".{Path(BEST).stem}.*"):
        old.unlink(missing_ok=True)


def drop_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps, which a run that has gone back takes again."""
    for later in checkpoints(folder):
        if step_of(later) > step:
            LOG.info("deleting %s: this run has gone on from an earlier step", later)
            _delete(later)


def _delete(path: Path) -> None:
    """Delete a checkpoint so that nobody ever meets half of it; an error leaves it, or a leftover, where it is."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.old")
    with contextlib.suppress(OSError):
        os.replace(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest step first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.removeprefix(_PREFIX))


def is_name(milestone: str) -> bool:
    """Whether a milestone names a checkpoint of a run: `best`, `latest` or a step; otherwise it is a path."""
    return milestone in ("best", "latest") or milestone.isdecimal()


def locate(milestone: str, folder: Path) -> Path:
    """Where the weights file of a milestone is, or would be; `folder` is that of the run's checkpoints."""
    if milestone == "best":
        return folder / BEST
    if milestone == "latest":
        return (checkpoints(folder) or [folder / f"{_PREFIX}*"])[-1] / WEIGHTS
    if milestone.isdecimal():
        return folder / f"{_PREFIX}{milestone}" / WEIGHTS
    path = Path(milestone)
    return path / WEIGHTS if path.is_dir() else path


def find_weights(milestone: str, folder: Path) -> Path:
    """The weights file that `--ckpt_milestone` means: a path, `best`, `latest` or a step of the run in `folder`."""
    return existing(locate(milestone, folder), f"--ckpt_milestone {milestone}")


def existing(path: Path, asked_by: str) -> Path:
    """The path, if there is such a file; otherwise an `InputError` that names the option, and the steps there are."""
    if path.is_file():
        return path
    found = "; it is a folder, name a file in it" if path.is_dir() else ""
    for folder in (path.parent, path.parent.parent):
        if steps := [str(step_of(one)) for one in checkpoints(folder)]:
            found = f"; {folder} has the steps {', '.join(steps)}{' and best' if (folder / BEST).is_file() else ''}"
    raise InputError(f"{asked_by}: there is no file {path}{found}.")
