"""Attributes in HDF5 files that nobody vouches for."""

import contextlib
from datetime import datetime

import h5py
import numpy as np

LONGEST = 80  # characters of a text


def parsed_time(text: str, layout: str) -> datetime | None:
    """The time that a text says, None if it has another layout."""
    with contextlib.suppress(ValueError):
        return datetime.strptime(text, layout)
    return None


def numbers_of(holder: h5py.HLObject, key: str) -> tuple[float, ...]:
    """Read an attribute's numbers, none if absent; ValueError for other values."""
    if key not in holder.attrs:
        return ()
    # asked before HDF5 reads, because it crashes over damaged lists
    numeric = holder.attrs.get_id(key).dtype.kind in "uif"
    numbers = np.asarray(holder.attrs[key] if numeric else ())
    if numbers.dtype.kind not in "uif" or not numbers.size:
        raise ValueError(f"its attribute {key} is not a number")
    return tuple(numbers.astype(np.float64).ravel().tolist())


def number_of(holder: h5py.HLObject, key: str) -> float | None:
    """Read an attribute's only number, None if absent; ValueError for others."""
    numbers = numbers_of(holder, key)
    if len(numbers) > 1:
        raise ValueError(f"its attribute {key} is not one number")
    return numbers[0] if numbers else None


def text_of(holder: h5py.HLObject, key: str, longest: int = LONGEST) -> str:
    """Read a text attribute as a printable line, empty if absent."""
    if key not in holder.attrs or h5py.check_string_dtype(holder.attrs.get_id(key).dtype) is None:
        return ""
    text = np.ravel(holder.attrs[key])[:1].tolist()
    text = text[0] if text else ""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return "".join(filter(str.isprintable, text))[:longest].strip() if isinstance(text, str) else ""
