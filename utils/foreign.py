"""Sentences about files that cannot be read as weights."""

import pickle
from pathlib import Path

from utils.errors import InputError

EXPECTED = "expected are our weights (.safetensors), or a checkpoint of the official code (.pt or .ckpt)"
_BEGINNINGS = {  # what failed or unfinished downloads leave
    b"\x1f\x8b": "a gzip archive, which must be unpacked first",
    b"version https://git-lfs": "a pointer of Git LFS, which `git lfs pull` replaces by the file",
    b"<!doctype html": "a web page (HTML), as a failed download leaves it",
    b"<html": "a web page (HTML), as a failed download leaves it",
}
_BEGIN = 256  # bytes that are looked at


def unreadable(path: Path, error: Exception) -> InputError:
    """Say why a file is not read as weights, given the error of its reader."""
    if path.is_dir():
        return InputError(f"checkpoint {path} cannot be read: it is a folder; {EXPECTED}.")
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"checkpoint {path} cannot be read: {error.strerror}.")
    with path.open("rb") as file:
        begin = file.read(_BEGIN)
    pytorch = begin.startswith((b"PK\3\4", b"\x80\2"))  # zip archives, and what PyTorch wrote before them
    if isinstance(error, pickle.UnpicklingError) and pytorch:
        return InputError(f"checkpoint {path} is refused: it is damaged, or holds more than tensors and plain values.")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if begin[8:9] == b"{":  # after eight bytes that give the header's length
        kind = f"a safetensors file that is cut off, damaged or misnamed ({reason})"
    elif pytorch:
        kind = f"a PyTorch or zip file that is cut off, damaged or misnamed ({reason})"
    else:
        kind = _kind(begin)
    return InputError(f"checkpoint {path} cannot be read: it seems to be {kind}; {EXPECTED}.")


def _kind(begin: bytes) -> str:
    if not begin:
        return "an empty file"
    text = begin.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    for signature, kind in _BEGINNINGS.items():
        if text.startswith(signature):
            return kind
    return "damaged, or of another kind"
