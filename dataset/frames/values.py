"""Conversion of stored values to physical ones."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.frames.config import FramesConfig
from dataset.units import NOTHING, same_units
from utils.errors import InputError

MASKED_FLOAT, MASKED_INTEGER = 1e20, 999999  # what `filled` of NumPy's masked arrays writes; no radar measures that


class StoredFrame(NamedTuple):
    """A frame in units, and how a file stores it."""

    values: np.ndarray  # float `(H, W)` from north to south; NaN where missing, minus infinity where dry
    kind: str  # stored type
    scale: float  # value = stored value * scale + offset
    offset: float


class Meaning(NamedTuple):
    """Metadata of a file about its stored values."""

    scale: float | None = None
    offset: float | None = None
    missing: tuple[float, ...] = ()  # stored values
    dry: tuple[float, ...] = ()  # stored values
    units: str | None = None


def agreed(path: Path, meaning: Meaning, config: FramesConfig) -> Meaning:
    """Join the metadata of a file and of `frames.yaml`.

    Raises `InputError` that names both values if they contradict.
    """
    scale = _agreed(path, "scale", meaning.scale, config.scale, config, 1.0)
    offset = _agreed(path, "offset", meaning.offset, config.offset, config, 0.0)
    if not (math.isfinite(scale) and math.isfinite(offset) and scale):
        raise ValueError(f"its scale {scale:g} or offset {offset:g} is not possible")
    for value in set(meaning.dry).intersection(config.missing):
        raise InputError(f"{path}: {value:g} is dry there but missing in {config.file}; remove it from missing.")
    converted = meaning.scale is None and scale != 1
    units = (meaning.units or "").strip()
    if units.lower() not in NOTHING and not converted and not same_units(units, config.units):
        raise InputError(
            f"{path}: units are {units} there but {config.units} in {config.file}; correct units, range and thresholds "
            "in the latter."
        )
    return meaning._replace(scale=scale, offset=offset, missing=meaning.missing + config.missing)


def physical(stored: np.ndarray, meaning: Meaning) -> StoredFrame:
    """The frame of stored values `(H, W)` whose meaning is agreed."""
    kind = np.result_type(stored.dtype, np.float32)
    values = stored.astype(kind)
    # rounded like the values, or else -9999.9 would not be found among float32
    missing, dry = (np.isin(values, np.array(marks, kind)) for marks in (meaning.missing, meaning.dry))
    values = values * kind.type(meaning.scale) + kind.type(meaning.offset)
    values[dry] = -np.inf
    values[missing | unknown(stored)] = np.nan
    return StoredFrame(values, stored.dtype.name, meaning.scale, meaning.offset)


def unknown(stored: np.ndarray) -> np.ndarray:
    """Mask of NaN, plus infinity and fill values of masked arrays."""
    if stored.dtype.kind != "f":
        return stored == MASKED_INTEGER
    return np.isnan(stored) | ((np.abs(stored) >= MASKED_FLOAT) & ~np.isneginf(stored))


def _agreed(path: Path, key: str, stored: float | None, typed: float | None, config: FramesConfig, default: float):
    if stored is None or typed is None:
        return next((value for value in (stored, typed) if value is not None), default)
    if not math.isclose(stored, typed, rel_tol=1e-6):
        raise InputError(f"{path}: {key} is {stored:g} there but {typed:g} in {config.file}; remove {key} from it.")
    return stored
