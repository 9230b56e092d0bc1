"""DiffCast from Python: load a forecaster, open a data set, forecast, score and draw.

import diffcast as dc

model = dc.load("resources/diffcast_demo.safetensors")
data = dc.dataset("synthetic", "test", "/tmp/storms", like=model)
scores = dc.Scores.of(data.source, model.frames_out, members=8)
for observed, future in dc.batches(data, 4):
    ensemble = dc.forecast(model, observed, members=8, seed=0)
    scores.update(ensemble, future)
print(scores.compute()["crps"])
dc.draw("storm.gif", observed[0], future[0], ensemble[0], data.source)
"""

import importlib
import sys
from pathlib import Path


def _import_neighbours() -> None:
    """Import `dataset`, `models` and `utils` of this checkout, even if `sys.path` leads to others of these names."""
    checkout = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(checkout))
    try:
        for name in ("utils", "models", "dataset"):
            found = Path(importlib.import_module(name).__file__ or "").resolve()
            if found != checkout / name / "__init__.py":
                raise ImportError(
                    f"diffcast needs its own {name}, but {found} has been imported under this name. Import diffcast "
                    "first, or rename that file. diffcast works from its checkout: pip install -e ."
                )
    finally:
        sys.path.remove(str(checkout))


_import_neighbours()

from diffcast.api import batches, dataset, draw, forecast, load  # noqa: E402
from diffcast.model import DiffCast, build_diffcast  # noqa: E402
from utils.metrics import Scores  # noqa: E402

__all__ = ["DiffCast", "Scores", "batches", "build_diffcast", "dataset", "draw", "forecast", "load"]
