"""An evaluation folder as a report reads it: numbers, settings, cases, and the terms of every sequence."""

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.errors import InputError

METRICS = "metrics.json"
NEEDED = ("scale", "thresholds", "interval", "frames_out")
PARTS = "sequences/part-*.npz"


@dataclass(frozen=True)
class Evaluation:
    """The results of one evaluation, as `metrics.json` of `folder` tells them."""

    folder: Path
    metrics: dict

    @property
    def name(self) -> str:
        return str(self.metrics.get("name") or next(iter(self.scores)))

    @property
    def scores(self) -> dict[str, dict]:
        """Forecast -> scores; the first forecast is the evaluated one, the others are its baselines."""
        return self.metrics["scores"]

    @property
    def source(self) -> dict:
        return self.metrics["source"]

    def section(self, name: str) -> dict:
        """A dict of `metrics.json` that may be absent."""
        return self.metrics.get(name) or {}

    def parts(self) -> list[Path]:
        """The files with the terms of each sequence. Raises `InputError` if there are none."""
        paths = sorted(self.folder.glob(PARTS))
        if not paths:
            raise InputError(f"{self.folder} has no {PARTS}, which comparisons need; evaluate that run again.")
        return paths

    @cached_property
    def sequence_ids(self) -> list[str]:
        """Names of the scored sequences in the order of the parts, each once."""
        ids = [str(name) for path in self.parts() for (part,) in [read_arrays(path, ["id"])] for name in part]
        if len(set(ids)) < len(ids):
            raise InputError(
                f"the parts in {self.folder} repeat sequences; delete {PARTS} and evaluate that run again."
            )
        expected = self.metrics.get("sequences", len(ids))
        if len(ids) != expected:
            raise InputError(
                f"the parts in {self.folder} hold {len(ids)} sequences, but {METRICS} was computed from {expected}; "
                "evaluate that run again."
            )
        return ids


@dataclass(frozen=True)
class Entry:
    """One forecast of one evaluation: a row of tables, a colour of charts."""

    label: str
    evaluation: Evaluation
    forecast: str

    @property
    def scores(self) -> dict:
        return self.evaluation.scores[self.forecast]

    @property
    def members(self) -> int:
        """Size of the ensemble; 1 for a deterministic forecast."""
        if "ensemble_mean" not in self.scores:
            return 1
        ranks = self.scores.get("rank_histogram")
        return len(ranks) - 1 if ranks else int(self.evaluation.section("evaluation").get("members", 1))

    def array(self, *keys: str) -> np.ndarray | None:
        """A score as float64 array, null as NaN; None if it is absent or nowhere defined."""
        value = self.scores
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        values = None if value is None else np.asarray(value, dtype=np.float64)
        return values if values is not None and np.isfinite(values).any() else None


def load_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation folder, or a run folder that holds exactly one. Raises `InputError` if there is none."""
    folder = _evaluation_folder(Path(folder))
    path = folder / METRICS
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); evaluate that run again.") from None
    if not isinstance(metrics, dict) or not all(_is_table(metrics.get(key)) for key in ("scores", "source")):
        raise InputError(f'{path} lacks "scores" or "source", so it is not of this version; evaluate that run again.')
    if missing := [key for key in NEEDED if key not in metrics["source"]]:
        raise InputError(f"{path} does not tell the {missing[0]} of its source; evaluate that run again.")
    return Evaluation(folder, metrics)


def find_entry(run: str) -> Entry:
    """The forecast that `run` names: a folder for the evaluated one, `folder:forecast` for one of its baselines."""
    folder, colon, forecast = (run, "", "") if Path(run).exists() else run.rpartition(":")
    evaluation = load_evaluation(Path(folder if colon else run))
    if not colon:
        return Entry(evaluation.name, evaluation, next(iter(evaluation.scores)))
    if forecast not in evaluation.scores:
        known = ", ".join(evaluation.scores)
        raise InputError(f'{evaluation.folder} has no forecast "{forecast}"; it has {known}.')
    return Entry(f"{evaluation.name}: {forecast}", evaluation, forecast)


def read_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Some arrays of a part, without reading the others. Raises `InputError` if the file or an array is not there."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return [file[name] for name in names]
    except KeyError as error:
        raise InputError(f"{path} does not hold {error.args[0]}; evaluate that run again.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate that run again.") from None


def read_terms(
    evaluation: Evaluation, forecast: str, states: Sequence[str]
) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
    """Ids (n) and terms `(n, ...)` of each part of an evaluation, one part in memory at a time."""
    for path in evaluation.parts():
        ids, *terms = read_arrays(path, ["id", *(f"{forecast}:{state}" for state in states)])
        yield [str(name) for name in ids], dict(zip(states, terms, strict=True))


def _evaluation_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name an evaluation folder or a run folder.")
    if (folder / METRICS).is_file():
        return folder
    found = sorted(path.parent for path in folder.glob(f"evaluation_*/{METRICS}"))
    if not found:
        raise InputError(f"{folder} has no {METRICS}; evaluate that run first.")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{folder} holds {len(found)} evaluations ({names}); name one of them.")
    return found[0]


def _is_table(value) -> bool:
    return isinstance(value, dict) and bool(value)
