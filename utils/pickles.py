"""PyTorch's pickled files (`.pt`, `.ckpt`), read without executing anything from them."""

import mmap
import pickle
import pickletools
import re
import struct
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch

from utils.errors import InputError
from utils.foreign import unreadable

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


def load_pickle(path: Path) -> dict:
    """Read a dictionary of tensors and plain values.

    Raises `InputError` for a missing or damaged file, and for one that holds anything else.
    """
    try:
        _refuse_bombs(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"checkpoint {path} does not exist.") from None
    except (pickle.UnpicklingError, *_DAMAGED) as error:
        raise unreadable(path, error) from None
    if not isinstance(loaded, dict):
        raise InputError(f"checkpoint {path} holds no dictionary of weights.")
    return loaded


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
