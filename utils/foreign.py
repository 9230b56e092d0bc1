"""What a file that cannot be read as weights seems to be."""

from codecs import getincrementaldecoder
from pathlib import Path

EXPECTED = "expected are our weights (.safetensors), or a checkpoint of the official code (.pt or .ckpt)"
_BEGINNINGS = {
    b"\x89PNG": "a PNG picture",
    b"GIF8": "a GIF picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 or NetCDF file",
    b"CDF": "a NetCDF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive, which must be unpacked first",
    b"version https://git-lfs": "a pointer of Git LFS, which `git lfs pull` replaces by the file",
}
_BEGIN = 4096  # bytes that are looked at


def what_it_seems(path: Path, reason: str) -> str:
    """A few words on what a file seems to be, and what is expected; `reason` is what its reader said."""
    if path.is_dir():
        return f"it is a folder; {EXPECTED}"
    begin = _begin(path)
    if begin[8:9] == b"{":  # after eight bytes that give the header's length
        return f"it seems to be a safetensors file that is cut off, damaged or misnamed ({reason}); {EXPECTED}"
    if may_be_pytorch(path):
        return f"it seems to be a PyTorch or zip file that is cut off, damaged or misnamed ({reason}); {EXPECTED}"
    return f"it seems to be {_kind(begin)}; {EXPECTED}"


def may_be_pytorch(path: Path) -> bool:
    """Whether a file begins as PyTorch's files do, the old ones or zip archives."""
    return _begin(path).startswith((b"PK\3\4", b"\x80\2"))


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_BEGIN)


def _kind(begin: bytes) -> str:
    if not begin:
        return "an empty file"
    for signature, kind in _BEGINNINGS.items():
        if begin.startswith(signature):
            return kind
    if begin.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML), as a failed download leaves it"
    return "a text file" if _is_text(begin) else "damaged, or of an unknown kind"


def _is_text(begin: bytes) -> bool:
    try:
        text = getincrementaldecoder("utf-8")().decode(begin)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
