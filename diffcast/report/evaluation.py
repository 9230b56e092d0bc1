"""An evaluation and its forecasts as a report reads them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from diffcast.evaluation.parts import Parts
from diffcast.evaluation.results import METRICS, read_metrics
from utils.errors import InputError

LEARNT = ("trend", "dressed")  # forecasts that have weights, besides the evaluated one
SAMPLING = ("sampler", "sampling_steps", "forecast_precision", "compile")
OF_ENSEMBLES = ("seed", "members", "dress")
OF_BASELINES = {"steps": ("seed", "members")}
OF_DATA = (
    *("dataset", "data_path", "packed_path", "scale", "split", "stride", "img_size", "crop", "img_channel", "seq_len"),
    *("frames_in", "frames_out", "eval_sequences", "lpips", "device", "processes"),
)


@dataclass(frozen=True)
class Evaluation:
    """The results of one evaluation: `metrics.json` and the parts."""

    folder: Path
    metrics: dict

    @property
    def name(self) -> str:
        """The name of the evaluated forecast."""
        return self.metrics["name"]

    @property
    def scores(self) -> dict[str, dict]:
        """Scores by forecast: first the evaluated forecast, then its baselines."""
        return self.metrics["scores"]

    @property
    def source(self) -> dict:
        """The data source, as `describe_source` returns it."""
        return self.metrics["source"]

    def section(self, name: str) -> dict:
        """A dict of `metrics.json` that may be absent."""
        return self.metrics.get(name) or {}

    @property
    def parts(self) -> Parts:
        """The terms of each sequence."""
        return Parts(self.folder / "sequences", self.metrics.get("parts", ""))

    @cached_property
    def events(self) -> dict[str, str]:
        """Events by the ids of the scored sequences.

        Raises `InputError` unless the parts hold all sequences.
        """
        events, expected = self.parts.events(), self.metrics["sequences"]
        if len(events) != expected:
            raise InputError(
                f"the parts in {self.folder} hold {len(events)} sequences, but {METRICS} was computed from {expected}; "
                "evaluate that run again."
            )
        return events


@dataclass(frozen=True)
class Entry:
    """A forecast with a row in tables and a colour in charts."""

    label: str
    evaluation: Evaluation
    forecast: str

    @property
    def scores(self) -> dict:
        return self.evaluation.scores[self.forecast]

    @property
    def has_weights(self) -> bool:
        """Whether it is the evaluated forecast or derives from its backbone."""
        return self.forecast in (next(iter(self.evaluation.scores)), *LEARNT)

    @property
    def settings(self) -> dict:
        """The settings that concern this forecast.

        Only the evaluated forecast may sample a diffusion.
        """
        how = self.evaluation.section("evaluation")
        sampled = how.get("sampler") and self.forecast == next(iter(self.evaluation.scores))
        absent = () if sampled else SAMPLING if self.forecast == "dressed" else (*SAMPLING, *OF_ENSEMBLES)
        found = self.evaluation.section("settings") | how
        if not self.has_weights:
            own = (*OF_DATA, *OF_BASELINES.get(self.forecast, ()))
            return {key: found[key] for key in found if key in own}
        return {key: found[key] for key in found if key not in absent}

    @property
    def checkpoint(self) -> dict:
        """Label and hash of the weights; empty if the forecast has none."""
        return self.evaluation.section("checkpoint") if self.has_weights else {}

    @property
    def members(self) -> int:
        """Size of the ensemble; 1 for a deterministic forecast."""
        if "ensemble_mean" not in self.scores:
            return 1
        ranks = self.scores.get("rank_histogram")
        return len(ranks) - 1 if ranks else int(self.evaluation.section("evaluation").get("members", 1))

    def array(self, *keys: str) -> np.ndarray | None:
        """A score as float64 array with NaN for null.

        None if the score is absent or undefined everywhere.
        """
        value = self.scores
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        values = None if value is None else np.asarray(value, dtype=np.float64)
        return values if values is not None and np.isfinite(values).any() else None


def load_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation folder, or the only one of a run folder.

    Raises `InputError` if there is none.
    """
    folder = _evaluation_folder(Path(folder))
    return Evaluation(folder, read_metrics(folder))


def find_entry(run: str) -> Entry:
    """The forecast that `run` names.

    A folder stands for its evaluated forecast, and `folder:forecast` for one of its baselines.
    """
    folder, colon, forecast = (run, "", "") if Path(run).exists() else run.rpartition(":")
    evaluation = load_evaluation(Path(folder if colon else run))
    if not colon:
        return Entry(evaluation.name, evaluation, next(iter(evaluation.scores)))
    if forecast not in evaluation.scores:
        names = ", ".join(evaluation.scores)
        raise InputError(f'{evaluation.folder} has no forecast "{forecast}"; it has {names}.')
    return Entry(f"{evaluation.name}: {forecast}", evaluation, forecast)


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
