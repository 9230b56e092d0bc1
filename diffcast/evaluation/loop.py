"""The evaluation loop for any forecaster."""

import hashlib
import logging
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from dataset.sequences import Sequences
from diffcast.evaluation.parts import RAINY, Part, Parts, digest_of, split_into_parts
from diffcast.evaluation.results import describe_source, score_table, warn_of_gaps, write_lead_times, write_metrics
from diffcast.forecaster import place
from diffcast.forecasting.domain import observed_part, put_back
from diffcast.forecasting.dressed import Dressed
from diffcast.forecasting.forecasts import ForecastSettings, forecast_all
from diffcast.forecasting.pictures import draw_case
from diffcast.forecasting.steps import members_of
from diffcast.loading import digest_of_frames, generators, load_batches, spread
from diffcast.model import DiffCast
from diffcast.precision import forecast_precision
from diffcast.processes import agreed, alone_in, decided_by_main
from diffcast.report import write_report
from utils.claims import own_folder
from utils.errors import InputError
from utils.files import Dispensable
from utils.metrics import ExceedanceScores, PerceptualDistance, Score, Scores, load_lpips
from utils.options import option

LOG = logging.getLogger(__name__)
FORMAT = 4  # of the parts
SAMPLING = ("sampler", "sampling_steps", "forecast_precision", "compile")
MACHINE = ("num_workers", "device", "processes")  # what does the work, and changes nothing
# What the scores depend on besides checkpoint, evaluation settings and frames, of the settings of the run.
DECISIVE = ("backbone_options", "dataset", "split", "stride", "scale", "crop")
# Sequences that choose the probability of warnings: a quarter of the number to score, so that they take little time.
VALIDATION_SHARE, MOST_VALIDATION = 1 / 4, 128
# Terms of each sequence that are kept, so that the difference of two runs gets an interval.
COMPARED = re.compile(r"((ensemble_mean|pm_mean)/)?(categorical|errors|similarity)/|ensemble/")


@dataclass(frozen=True)
class EvaluationSettings(ForecastSettings):
    """How to forecast and score. Raises `InputError` for impossible values."""

    eval_sequences: int | None = option(
        None, "number of sequences to score, evenly spaced in the test split. The default is all", at_least=1
    )
    dress: bool = option(False, "also score the dressed trend: the trend plus residuals of training sequences")
    cases: int = option(
        3,
        "number of sequences to draw: those with the best and the worst CRPS, and others between",
        at_least=0,
        rare=True,
    )
    whole_map: bool = option(
        False,
        "with --crop, forecast complete frames, as in operation, and score their tiles. The default forecasts each "
        "tile by itself",
    )
    lpips: bool = option(False, "also score the learned perceptual distance, with the package lpips", rare=True)
    num_workers: int = 4


def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    dataset: Sequences,
    settings: EvaluationSettings,
    folder: Path,  # of the results; a number is appended if another evaluation has it
    name: str,  # of the forecaster in tables
    about: dict,  # JSON-ready, to be written to metrics.json with the scores
    dressed: Dressed | None = None,  # residuals that make an ensemble of the trend, also scored
    valid_set: Sequences | None = None,  # chooses the probability of warnings; without it ensembles have no such score
) -> dict[str, dict]:
    """Score a forecaster, its trend and the baselines on a data set.

    Each sequence is forecast once, on one of the processes, with noise that depends on the seed and the sequence alone.
    Scores are written in parts, so that an interrupted evaluation continues with the missing ones. This function
    writes `metrics.json`, `lead_time.csv`, `report.html` and pictures of cases, and returns the scores by forecast.
    Raises `InputError` if the same evaluation is running.
    """
    evaluator = Evaluator(accelerator, model, dataset, settings, name, dressed)
    choice = None
    if valid_set is not None:
        choice = WarningChoice(accelerator, model, valid_set, settings, name, dressed, len(evaluator.chosen))
        about = about | {"validation_sequences": len(choice.chosen)}
    identity = decided_by_main(accelerator, partial(evaluator.identity, about, choice))
    if agreed(accelerator, identity["checkpoint"] != about.get("checkpoint")):
        raise InputError("the processes read different weights, which a training replaces; repeat the command.")
    folder = decided_by_main(accelerator, partial(own_folder, folder, identity))
    with alone_in(folder, accelerator, "wait for its end or stop it"):
        needed = choice.choose(folder, digest_of(identity)) if choice else {}
        scores = evaluator.evaluate(folder, digest_of(identity), about, needed)
    accelerator.wait_for_everyone()
    LOG.info("open %s", folder / "report.html")
    return scores


class Evaluator:
    """The forecasts of one process, and the scores of all."""

    task = "evaluation"

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        dataset: Sequences,
        settings: EvaluationSettings,
        name: str,
        dressed: Dressed | None,
    ):
        self.accelerator = accelerator
        self.model = place(model, accelerator.device).eval()
        self.dataset = dataset
        self.settings = settings.fitting(model)
        self.name = name
        self.dressed = dressed
        self.drawing = Dispensable("pictures of the cases")
        self.perception = load_lpips().to(accelerator.device) if settings.lpips else None
        self.precision = forecast_precision(settings.forecast_precision, accelerator.device)
        self.nowcaster = settings.nowcaster(dataset.source, self.pixel_km, model.frames_out)
        self.chosen = spread(len(dataset), settings.eval_sequences)
        ensemble = settings.members
        own = {name: ensemble, "trend": 1} if isinstance(model, DiffCast) else {name: 1}
        own |= {"dressed": ensemble} if dressed else {}
        self.members = own | {baseline: members_of(baseline, ensemble) for baseline in settings.baselines}
        self.work = split_into_parts(self._batches())

    def _batches(self) -> list[list[int]]:
        """The sequences that are forecast together: those of a map, or as many as `forecast_batch` allows."""
        if self.settings.whole_map:
            return [list(of_map) for _, of_map in groupby(self.chosen, lambda index: self.dataset.part_of(index)[0])]
        size = max(1, self.settings.forecast_batch // self.settings.members)
        return [self.chosen[i : i + size] for i in range(0, len(self.chosen), size)]

    @property
    def pixel_km(self) -> float:
        """Width of a pixel."""
        return self.dataset.source.extent / self.model.frame_shape[2]

    def evaluate(self, folder: Path, digest: str, about: dict, needed: dict[str, list[int]]) -> dict[str, dict]:
        """Score the missing parts, and write the results to the folder."""
        self.folder = folder
        LOG.info("forecasting %d of %d sequences with %s", len(self.chosen), len(self.dataset), self.name)
        self.run(Parts(folder / "sequences", digest))
        scores, cases = self.scores(needed), self.draw_cases()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.write(scores, cases, about)
        return scores

    def identity(self, about: dict, choice: "WarningChoice | None") -> dict:
        """Return what determines the scores.

        An evaluation continues another one if this is the same for both.
        """
        settings = {key: value for key, value in about.get("settings", {}).items() if key in DECISIVE}
        return {
            "format": FORMAT,
            "forecaster": self.name,
            "checkpoint": about.get("checkpoint"),
            "commit": about.get("about", {}).get("commit"),
            "settings": settings,
            "evaluation": {key: value for key, value in self.how().items() if key not in ("cases", *MACHINE)},
            "dressed": self.dressed is not None,
            "source": describe_source(self.dataset.source, self.model),
            **self.identity_of_data(),
            "validation": choice and choice.identity_of_data(),
        }

    def identity_of_data(self) -> dict:
        """Return what distinguishes the chosen sequences from others."""
        ids = [self.dataset.sequence_id(index) for index in self.chosen]
        names = hashlib.sha256("\n".join(ids).encode()).hexdigest()
        return {"sequences": names, "frames": digest_of_frames(self.dataset, self.chosen)}

    def how(self) -> dict:
        """Return the settings that this evaluation uses, JSON-ready."""
        machine = {"device": self.accelerator.device.type, "processes": self.accelerator.num_processes}
        how = asdict(self.settings) | machine
        if not self.settings.whole_map:
            del how["tile"]  # as the frames of an evaluation have the size of the model's
        if isinstance(self.model, DiffCast):
            return how | {"forecast_precision": str(self.precision).removeprefix("torch.")}
        return {key: value for key, value in how.items() if key not in SAMPLING}

    def write(self, scores: dict[str, dict], cases: list[dict], about: dict) -> None:
        """Write the numbers and the report, and log the most important scores."""
        source = describe_source(self.dataset.source, self.model)
        write_lead_times(self.folder / "lead_time.csv", scores, source)
        results = {"name": self.name, **about, "evaluation": self.how(), "sequences": len(self.chosen)}
        results |= {"parts": self.parts.digest, "source": source, "scores": scores, "cases": cases}
        write_metrics(self.folder, results)
        LOG.info("%s", score_table(scores))
        warn_of_gaps(scores)
        with Dispensable("the report"):
            write_report(self.folder)

    def run(self, parts: Parts) -> None:
        """Forecast and score this process's missing parts, and wait for those of the others."""
        self.parts = parts
        decided_by_main(self.accelerator, parts.prepare)
        share = range(self.accelerator.process_index, len(self.work), self.accelerator.num_processes)
        todo = [number for number in share if not parts.done(number)]
        if len(todo) < len(share):
            LOG.info("%d of %d parts were scored before; going on", len(share) - len(todo), len(share))
        batches = [batch for number in todo for batch in self.work[number]]
        loader = load_batches(self.dataset, batches, self.settings.num_workers, self.accelerator.device)
        main = self.accelerator.is_main_process
        with tqdm(total=sum(map(len, batches)), desc=self.task, unit="seq", disable=not main) as bar:
            for number in todo:
                parts.save(number, self._score(islice(loader, len(self.work[number])), bar))
        self.accelerator.wait_for_everyone()

    def _score(self, batches: Iterable[tuple[Tensor, Tensor]], bar: tqdm) -> Part:
        """Forecast and score the batches of one part."""
        part = Part([], [], [], {}, {})
        scores = {name: self._new_scores(name) for name in self.members}
        terms: dict[str, list[dict[str, Tensor]]] = {name: [] for name in scores}
        for indices, frames in batches:
            observed, future = frames.tensor_split([self.model.frames_in], dim=1)
            part.index += indices.tolist()
            part.ids += [self.dataset.sequence_id(index) for index in indices.tolist()]
            part.events += [self.dataset.event_of(index) for index in indices.tolist()]
            for name, forecast in self._forecast(indices.tolist(), observed).items():
                added = scores[name].update(forecast, future)
                terms[name].append({key: values for key, values in added.items() if COMPARED.match(key)})
            bar.update(len(frames))
        part.states = {name: of_one.state() for name, of_one in scores.items()}
        part.terms = {
            name: {key: torch.cat([one[key] for one in some]) for key in some[0]} for name, some in terms.items()
        }
        return part

    def _forecast(self, indices: list[int], observed: Tensor) -> dict[str, Tensor]:
        """Forecast the sequences of a batch, each by itself or all as parts of their map."""
        if self.settings.whole_map:
            forecasts = self._forecast_map(indices, observed.device)
        else:
            draws = generators(self.accelerator.device, self.settings.seed, 3, indices)
            forecasts = forecast_all(self.model, observed, self.settings, draws, self.name)
        if self.dressed is not None:
            residuals = generators(self.accelerator.device, self.settings.seed, 4, indices)
            trend = forecasts.get("trend", forecasts[self.name])[:, 0]
            forecasts["dressed"] = self.dressed.dress_trend(trend, self.settings.members, residuals)
        nowcasts = self.nowcaster.forecast_sequences(self.dataset, indices, self.model.frames_in)
        return forecasts | {name: made.to(observed.device) for name, made in nowcasts.items()}

    def _forecast_map(self, indices: list[int], device: torch.device) -> dict[str, Tensor]:
        """Forecast the map that sequences are parts of, and cut them out."""
        (number, *_), parts = zip(*map(self.dataset.part_of, indices), strict=True)
        frames = self.dataset.map_frames(number)[None, : self.model.frames_in].to(device)
        domain = observed_part(frames)
        draws = generators(device, self.settings.seed, 3, [number])
        made = forecast_all(self.model, frames[(..., *domain)], self.settings, draws, self.name)
        maps = {name: put_back(one[0], domain, frames.shape[-2:]) for name, one in made.items()}
        return {name: torch.stack([one[(..., *part)] for part in parts]) for name, one in maps.items()}

    def totals(self) -> dict[str, Score]:
        """Return the summed parts of all processes by forecast."""
        totals = {name: self._new_scores(name) for name in self.members}
        for name, total in totals.items():
            total.load_state(self.parts.total(len(self.work), name))
        return totals

    def scores(self, needed: dict[str, list[int]]) -> dict[str, dict]:
        """Return the scores by forecast.

        `needed` is the number of members that make a warning, by threshold, of the forecasts that have this score.
        """
        single = {name: [1] * len(self.dataset.source.steps) for name, members in self.members.items() if members == 1}
        needed = needed | single
        return {
            name: total.compute() | (total.warnings(needed[name]) if name in needed else {})
            for name, total in self.totals().items()
        }

    def draw_cases(self) -> list[dict]:
        """Draw sequences with rain: the best and the worst CRPS, and others between.

        Returns a description of each sequence, JSON-ready.

        If no sequence has rain on the share `RAINY` of its observed pixels, all are candidates.
        """
        index, crps, rain = self.parts.cases(len(self.work), self.name)
        candidates = np.flatnonzero(np.isfinite(crps) & (rain >= RAINY))
        if not len(candidates):
            candidates = np.flatnonzero(np.isfinite(crps))
        order = candidates[np.argsort(crps[candidates], kind="stable")]
        names = {1: ["median"], 2: ["best", "worst"], 3: ["best", "median", "worst"]}
        number = min(self.settings.cases, len(order))
        mine = []
        for case in range(self.accelerator.process_index, number, self.accelerator.num_processes):
            rank = (len(order) - 1) // 2 if number == 1 else round(case * (len(order) - 1) / (number - 1))
            chosen = order[rank]
            mine.append(
                {
                    "rank": rank + 1,
                    "id": self.dataset.sequence_id(int(index[chosen])),
                    "why": names[number][case] if number in names else f"rank {rank + 1} of {len(order)}",
                    "crps": float(crps[chosen]),
                    "rain": float(rain[chosen]),
                    "pictures": self._draw(int(index[chosen])),
                }
            )
        return sorted(gather_object(mine), key=lambda case: case["rank"])

    def _draw(self, index: int) -> list[str]:
        _, frames = next(load_batches(self.dataset, [[index]], 0, self.accelerator.device))
        observed, future = frames[0].tensor_split([self.model.frames_in])
        unseen = observed.isnan().all(0)
        drawn = self._forecast([index], observed[None])
        forecasts = {name: self.dataset.crop(one[0].masked_fill(unseen, torch.nan)) for name, one in drawn.items()}
        observed, future = self.dataset.crop(observed), self.dataset.crop(future)
        name = f"case_{self.dataset.sequence_id(index)}"
        files = []
        with self.drawing:
            source = self.dataset.source
            files = draw_case(self.folder, name, observed, future, forecasts, source, self.pixel_km)
        return [path.name for path in files]

    def _new_scores(self, name: str) -> Score:
        leads = self.model.frames_out
        scores = Scores.of(self.dataset.source, leads, self.members[name])
        if self.perception is not None:
            scores.parts["perception"] = PerceptualDistance(leads, self.perception)
        return scores


class WarningChoice(Evaluator):
    """The choice, on validation sequences, of how many members make a warning."""

    task = "validation"

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        valid_set: Sequences,
        settings: EvaluationSettings,
        name: str,
        dressed: Dressed | None,
        scored: int,  # number of sequences to be scored
    ):
        number = min(MOST_VALIDATION, math.ceil(VALIDATION_SHARE * scored))
        ensembles = tuple(one for one in settings.baselines if members_of(one, settings.members) > 1)
        settings = replace(settings, eval_sequences=number, baselines=ensembles, lpips=False)
        super().__init__(accelerator, model, valid_set, settings, name, dressed)

    def choose(self, folder: Path, digest: str) -> dict[str, list[int]]:
        """Return the best number of members for each threshold, by forecast.

        The parts of an evaluation's folder and digest that are missing are forecast first.
        """
        number, available = len(self.chosen), len(self.dataset)
        LOG.info("choosing the probability of warnings on %d of %d validation sequences", number, available)
        self.run(Parts(folder / "validation", digest))
        return {name: total.best_warnings() for name, total in self.totals().items()}

    def _new_scores(self, name: str) -> ExceedanceScores:
        source = self.dataset.source
        return ExceedanceScores(source.scale, source.steps, self.model.frames_out, self.members[name])
