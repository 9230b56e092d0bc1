"""The evaluation loop, for any forecaster: scores, a curve per lead time, pictures."""

import csv
import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from dataset.source import Source
from diffcast.forecaster import place
from diffcast.loading import EvaluationBatches, generators, make_loader, spread, sum_over_processes
from diffcast.model import DiffCast, Generators
from models.persistence import Persistence
from utils.files import replacing
from utils.log import format_table
from utils.metrics import Scores
from utils.visualize import Style, draw_animation, draw_strip

LOG = logging.getLogger(__name__)
TABLE = ["csi", "csi_pool4", "csi_pool16", "pod", "far", "hss", "mse", "mae", "ssim", "crps"]


@dataclass(frozen=True)
class EvaluationSettings:
    """How to forecast and score."""

    seed: int = 0
    members: int = 1
    sampler: str = "ddim"
    sampling_steps: int = 250  # network evaluations per segment
    batch_size: int = 12  # forecasts (sequences x members) at a time
    sequences: int | None = None  # evenly spread over the split; None: all
    cases: int = 4  # sequences to draw, evenly spread over those scored
    num_workers: int = 4


def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    dataset: Dataset,
    settings: EvaluationSettings,
    folder: Path,  # where results are written
    name: str,  # of the forecaster in tables
    about: dict,  # JSON-ready: goes into metrics.json beside the scores
) -> dict[str, dict]:
    """Score a forecaster on a data set, next to persistence and (for DiffCast) its own trend.

    Each sequence is forecast once, on one of the processes, with noise that depends on the seed and the sequence alone.
    Writes `metrics.json`, `lead_time.csv`, and a strip and an animation of each case. Returns the scores by forecast.
    """
    evaluator = Evaluator(accelerator, model, dataset, settings, folder, name)
    LOG.info("forecasting %d of %d sequences with %s", len(evaluator.chosen), len(dataset), name)
    evaluator.run()
    scores = evaluator.reduced()
    if accelerator.is_main_process:
        report = {
            **about,
            "evaluation": asdict(settings),
            "sequences": len(evaluator.chosen),
            "scores": _without_nan(scores),
        }
        with replacing(folder / "metrics.json") as temporary:
            temporary.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        _write_lead_times(folder / "lead_time.csv", scores, dataset.source.interval)
        LOG.info("%s", score_table(scores))
    accelerator.wait_for_everyone()
    return scores


class Evaluator:
    """The forecasts of one process and their scores."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        dataset: Dataset,
        settings: EvaluationSettings,
        folder: Path,
        name: str,
    ):
        self.accelerator = accelerator
        self.model = place(model, accelerator.device).eval()
        self.dataset = dataset
        self.settings = settings
        self.folder = folder
        self.name = name
        self.chosen = spread(len(dataset), settings.sequences)
        self.cases = {self.chosen[i] for i in spread(len(self.chosen), settings.cases)}
        self.style = style_of(dataset.source)
        members = {name: settings.members, "trend": 1} if isinstance(model, DiffCast) else {name: 1}
        source = dataset.source
        self.scores = {
            name: Scores(source.scale, source.thresholds, model.frames_out, number)
            for name, number in (members | {"persistence": 1}).items()
        }

    def run(self) -> None:
        """Forecast, score and draw this process's share of the sequences."""
        per_batch = max(1, self.settings.batch_size // self.settings.members)
        batches = EvaluationBatches(
            self.chosen, per_batch, self.accelerator.process_index, self.accelerator.num_processes
        )
        loader = make_loader(self.dataset, batches, self.settings.num_workers, self.accelerator.device)
        share = sum(map(len, batches.batches))
        with tqdm(total=share, desc="evaluation", unit="seq", disable=not self.accelerator.is_main_process) as bar:
            for indices, frames in loader:
                observed, future = frames.to(self.accelerator.device).tensor_split([self.model.frames_in], dim=1)
                draws = generators(self.accelerator.device, self.settings.seed, 3, indices)
                with self.accelerator.autocast():
                    forecasts = forecast_all(self.model, observed, self.settings, draws, self.name)
                for name, forecast in forecasts.items():
                    self.scores[name].update(forecast, future)
                for i in (i for i, index in enumerate(indices) if int(index) in self.cases):
                    self._draw(int(indices[i]), observed[i], future[i], {n: f[i] for n, f in forecasts.items()})
                bar.update(len(frames))

    def _draw(self, index: int, observed: Tensor, future: Tensor, forecasts: dict[str, Tensor]) -> None:
        rows = {"Target": future[:, 0]} | {title(name): drawn[0, :, 0] for name, drawn in forecasts.items()}
        rows = {name: frames.cpu().numpy() for name, frames in rows.items()}
        observed = observed[:, 0].cpu().numpy()
        name = f"case_{self.dataset.sequence_id(index)}"
        draw_strip(self.folder / f"{name}.png", observed, rows, self.style)
        draw_animation(self.folder / f"{name}.gif", observed, rows, self.style)

    def reduced(self) -> dict[str, dict]:
        """The scores of all processes together."""
        for scores in self.scores.values():
            state = scores.state()
            scores.load_state({name: sum_over_processes(self.accelerator, value) for name, value in state.items()})
        return {name: scores.compute() for name, scores in self.scores.items()}


def forecast_all(
    model: nn.Module, observed: Tensor, settings: EvaluationSettings, draws: Generators, name: str
) -> dict[str, Tensor]:
    """Forecasts `(B, M, T, C, H, W)`: the model's by its name, DiffCast's trend, and persistence."""
    baselines = {"persistence": Persistence(model.frame_shape, model.frames_in, model.frames_out).forecast(observed)}
    if not isinstance(model, DiffCast):
        return {name: model.forecast(observed).float(), **baselines}
    made = model.generate(
        observed,
        settings.members,
        draws,
        settings.sampler,
        settings.sampling_steps,
        members_at_once=max(1, settings.batch_size // len(observed)),
    )
    return {name: made.forecast.float(), "trend": made.trend.float().clamp(0, 1)[:, None], **baselines}


def title(name: str) -> str:
    """What pictures call a forecast."""
    return "DiffCast" if name.startswith("diffcast") else name.capitalize()


def style_of(source: Source) -> Style:
    """How frames of a data source are drawn."""
    return Style(source.scale, source.bounds, source.colors, source.units, source.interval)


def score_table(scores: dict[str, dict]) -> str:
    """The most asked-for scores, a row per forecast."""
    rows = []
    for name, values in scores.items():
        for label, some in ((name, values), (f"{name} (ensemble mean)", values.get("ensemble_mean", {}))):
            if some:
                rows.append([label, *(_number(some.get(score)) for score in TABLE)])
    return format_table(["", *TABLE], rows)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def _write_lead_times(path: Path, scores: dict[str, dict], interval: float) -> None:
    """One line per forecast and lead time (minutes), a column per score that has a curve."""
    curves = {
        name: {key.removesuffix("_per_lead"): value for key, value in values.items() if key.endswith("_per_lead")}
        for name, values in scores.items()
    }
    columns = list(dict.fromkeys(key for of_one in curves.values() for key in of_one))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["forecast", "lead_minutes", *columns])
        for name, of_one in curves.items():
            leads = len(next(iter(of_one.values())))
            for lead in range(leads):
                cells = [of_one[key][lead] if key in of_one else "" for key in columns]
                writer.writerow([name, (lead + 1) * interval, *cells])


def _without_nan(value):
    """The same structure with None for what is not a number or infinite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
