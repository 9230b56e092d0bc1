"""The content of a frame in words."""

import re
from pathlib import Path

import numpy as np

from dataset.frames.config import FramesConfig
from dataset.frames.georeference import Georeference
from dataset.frames.values import StoredFrame

METHOD = re.compile(r'(?:METHOD|PROJECTION)\["([\w ()]+)"')  # in WKT


def describe(path: Path, frame: StoredFrame, config: FramesConfig) -> str:
    """Format, size, quantity, range, missing share, time and grid in a sentence."""
    metadata, (height, width) = frame.metadata, frame.values.shape
    valid = frame.values[~np.isnan(frame.values)]
    values = f"{valid.min():.5g} to {valid.max():.5g}" if valid.size else "no values"
    parts = [
        f"{metadata.format} of {height} x {width} pixels ({frame.kind})",
        f"{metadata.quantity or config.name}, {values} {config.units}",
        f"{100 * (1 - valid.size / frame.values.size):.1f} % missing",
        f"{metadata.time:%Y-%m-%d %H:%M} UTC" if metadata.time else "no time",
        _grid(metadata.georeference),
    ]
    return f"{path} holds {'; '.join(parts)}"


def _grid(georeference: Georeference | None) -> str:
    if georeference is None:
        return "no coordinates"
    unit, scale = ("degrees", 1) if georeference.geographic else ("km", 1000)
    columns, rows = (abs(line[-1] - line[0]) / max(1, len(line) - 1) for line in (georeference.x, georeference.y))
    crs = georeference.crs or "unknown projection"
    method = METHOD.search(crs)
    name = "longitude and latitude" if georeference.geographic else method[1].replace("_", " ") if method else crs
    return f"pixels of {columns / scale:.4g} x {rows / scale:.4g} {unit}, {name}"
