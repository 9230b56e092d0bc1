"""An evaluation folder as a report reads it: numbers, settings, cases, and the terms of every sequence."""

import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from utils.errors import InputError

METRICS = "metrics.json"
PARTS = "sequences/part-*.npz"
OF_SOURCE = ("scale", "offset", "interval", "thresholds", "frames_out")  # what no report can do without
LEARNT = ("trend", "dressed")  # forecasts that have weights, besides the evaluated one
OF_DIFFUSION = ("sampler", "sampling_steps", "precision", "forecast_precision", "compile")
OF_ENSEMBLES = ("seed", "members", "dress")
OF_DATA = (
    *("dataset", "data_path", "packed_path", "scale", "split", "stride", "img_size", "img_channel", "seq_len"),
    *("frames_in", "frames_out", "eval_sequences", "sequences", "lpips", "device", "processes"),
)
# What reading a damaged .npz raises, depending on the byte: flags of the archive turn into RuntimeError.
DAMAGE = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


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
    def events(self) -> dict[str, str]:
        """Scored sequence -> the event it is part of, in the order of the parts."""
        sequences = [sequence for path in self.parts() for sequence in _sequences(path, self.metrics.get("parts"))]
        events = dict(sequences)
        if len(events) < len(sequences):
            raise InputError(
                f"the parts in {self.folder} repeat sequences; delete {PARTS} and evaluate that run again."
            )
        expected = self.metrics.get("sequences")
        if len(events) != expected:
            raise InputError(
                f"the parts in {self.folder} hold {len(events)} sequences, but {METRICS} was computed from {expected}; "
                "evaluate that run again."
            )
        return events


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
    def has_weights(self) -> bool:
        """Whether it is the evaluated forecast or one made of its backbone."""
        return self.forecast in (next(iter(self.evaluation.scores)), *LEARNT)

    @property
    def settings(self) -> dict:
        """The settings of the evaluation that concern this forecast: only the evaluated one may sample a diffusion."""
        how = self.evaluation.section("evaluation")
        sampled = how.get("sampler") and self.forecast == next(iter(self.evaluation.scores))
        absent = () if sampled else OF_DIFFUSION if self.forecast == "dressed" else (*OF_DIFFUSION, *OF_ENSEMBLES)
        found = self.evaluation.section("settings") | how
        return {key: found[key] for key in found if key not in absent and (self.has_weights or key in OF_DATA)}

    @property
    def checkpoint(self) -> dict:
        """Label and hash of the weights; nothing if the forecast has none."""
        return self.evaluation.section("checkpoint") if self.has_weights else {}

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
    """Read an evaluation folder, or a run folder that holds exactly one.

    Raises `InputError` if there is none, or if its `metrics.json` is not what an evaluation writes.
    """
    folder = _evaluation_folder(Path(folder))
    path = folder / METRICS
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); evaluate that run again.") from None
    if fault := _fault_of(metrics):
        raise InputError(f"{path} is no result of an evaluation: it {fault}; evaluate that run again.")
    return Evaluation(folder, metrics)


def _fault_of(metrics: object) -> str:
    """What parsed JSON lacks of a `metrics.json` of ours; nothing if it looks like one."""
    scores, source = (metrics.get(key) if isinstance(metrics, dict) else None for key in ("scores", "source"))
    if not (isinstance(scores, dict) and scores and all(isinstance(each, dict) for each in scores.values())):
        return 'lacks "scores", a table for each forecast'
    lacking = [key for key in OF_SOURCE if not isinstance(source, dict) or key not in source]
    return f'lacks the {", ".join(lacking)} of the "source"' if lacking else ""


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
    with open_arrays(path) as file:
        return [file[name] for name in names]


@contextmanager
def open_arrays(path: Path) -> Iterator[NpzFile]:
    """The arrays of a part by name. Raises `InputError` if it is not there or is damaged, also while they are read."""
    try:
        with path.open("rb") as stream, NpzFile(stream, allow_pickle=False) as file:
            yield file
    except KeyError as error:
        raise InputError(f"{path} is incomplete ({error.args[0]}); evaluate that run again.") from None
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read ({error}); evaluate that run again.") from None


def read_terms(
    evaluation: Evaluation, forecast: str, states: Sequence[str]
) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
    """Ids (n) and terms `(n, ...)` of each part of an evaluation, one part in memory at a time."""
    for path in evaluation.parts():
        ids, *terms = read_arrays(path, ["id", *(f"{forecast}:{state}" for state in states)])
        yield [str(name) for name in ids], dict(zip(states, terms, strict=True))


def _sequences(path: Path, digest: str | None) -> list[tuple[str, str]]:
    """The sequences of a part and their events.

    Raises `InputError` unless the part carries the digest that `metrics.json` gives.
    """
    with open_arrays(path) as file:
        if str(file["evaluation"]) != digest:
            raise InputError(f"{path} belongs to another evaluation; move it away and evaluate that run again.")
        return list(zip(map(str, file["id"]), map(str, file["event"]), strict=True))


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
