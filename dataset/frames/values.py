"""Conversion of stored values to physical ones."""

import math
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.frames.config import FramesConfig
from dataset.frames.georeference import Georeference
from dataset.units import NOTHING, same_units
from utils.errors import InputError

MASKED_FLOAT, MASKED_INTEGER = 1e20, 999999  # what `filled` of NumPy's masked arrays writes; no radar measures that
LIKE = 0.05  # relative difference of two widths that are the same
CREDITS = (  # attributes of ACDD that a forecast inherits from the frames
    *("institution", "license", "acknowledgement", "naming_authority", "project"),
    *(f"{role}_{what}" for role in ("creator", "publisher") for what in ("name", "email", "url")),
)


@dataclass(frozen=True)
class Metadata:
    """What a file says about its frame, None where it says nothing."""

    scale: float | None = None
    offset: float | None = None
    missing: tuple[float, ...] = ()  # stored values
    dry: tuple[float, ...] = ()  # stored values
    units: str | None = None
    quantity: str | None = None
    format: str = ""  # name of the reader
    time: datetime | None = None  # naive, UTC
    georeference: Georeference | None = None
    credits: tuple[tuple[str, str], ...] = ()  # about its origin, by names of ACDD


class StoredFrame(NamedTuple):
    """A frame in units, and how a file stores it."""

    values: np.ndarray  # float64 `(H, W)` from north to south; NaN where missing, minus infinity where dry
    kind: str  # stored type
    metadata: Metadata  # scale and offset are numbers


def agreed(path: Path, metadata: Metadata, config: FramesConfig) -> Metadata:
    """Join the metadata of a file and of `frames.yaml`.

    Raises `InputError` that names both values if they contradict.
    """
    scale = _agreed(path, "scale", metadata.scale, config.scale, config, 1.0)
    offset = _agreed(path, "offset", metadata.offset, config.offset, config, 0.0)
    if not (math.isfinite(scale) and math.isfinite(offset) and scale):
        raise ValueError(f"its scale {scale:g} or offset {offset:g} is not possible")
    for value in set(metadata.dry).intersection(config.missing):
        raise InputError(f"{path}: {value:g} is dry there but missing in {config.file}; remove it from missing.")
    converted = metadata.scale is None and scale != 1
    units = "" if converted else (metadata.units or "").strip()
    units = None if units.lower() in NOTHING else units
    if units and config.units and not same_units(units, config.units):
        raise InputError(
            f"{path}: units are {units} there but {config.units} in {config.file} or in the first frame; correct "
            "units, range and thresholds."
        )
    extent = metadata.georeference and metadata.georeference.extent_km
    if extent and config.extent_km and not math.isclose(extent, config.extent_km, rel_tol=LIKE):
        raise InputError(
            f"{path}: the width is {extent:.4g} km there but extent_km is {config.extent_km:g} in {config.file} or in "
            "the first frame; remove extent_km."
        )
    missing = metadata.missing + config.missing
    return replace(metadata, scale=scale, offset=offset, missing=missing, units=units)


def physical(stored: np.ndarray, metadata: Metadata) -> StoredFrame:
    """The frame of stored values `(H, W)` whose metadata are agreed.

    A masked pixel is missing.
    """
    plain = np.ma.getdata(stored)
    # rounded like the values, or else -9999.9 would not be found among float32
    kind = plain.dtype if plain.dtype.kind == "f" else np.float64
    missing, dry = (np.isin(plain, np.array(marks, kind)) for marks in (metadata.missing, metadata.dry))
    values = plain.astype(np.float64, order="C") * metadata.scale + metadata.offset
    values[dry] = -np.inf
    values[missing | unknown(plain) | np.ma.getmaskarray(stored)] = np.nan
    return StoredFrame(values, plain.dtype.name, metadata)


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
