"""Skill of sampler settings on a trained DiffCast, against a reference setting with the same start noise.

    python -m benchmarks.quality --ckpt_milestone best.safetensors --data_path data/sevir --sequences 64 --members 8 \
        --settings ddim:250 ddim:20 dpm:10 dpm:10:bfloat16 --json quality.json

A setting is `sampler:steps[:PRECISION]`. The first setting is the reference.

Sequences are evenly spread over the test split, the noise of each is that of `run.py --eval` with the same seed.
Differences are paired, with jackknife standard errors over sequences: a score, ratio of sums or not, is computed anew
without each sequence in turn. A setting is within a bar if its difference, in either direction and widened by two
standard errors, is; it is outside if the narrowed difference is outside, and open otherwise.

--json is written after each setting, and settings that it holds are not measured again. Seconds are those of the
moment, one setting after the other: `benchmarks.forecast` times them in turn.
"""

import argparse
import json
import math
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from dataset import DATASETS, build_dataset
from diffcast import DiffCast
from diffcast.evaluation.results import without_nan
from diffcast.forecaster import load_forecaster, place
from diffcast.loading import digest_of_frames, generators, load_batches, spread
from diffcast.samplers import SAMPLERS
from utils.checkpoint import find_weights
from utils.errors import InputError, exit_on_input_error
from utils.files import replacing
from utils.log import format_table
from utils.metrics import CategoricalScores, EnsembleScores, PowerSpectrum, ScoreGroup
from utils.provenance import provenance, sha256

PRECISIONS = ("float32", "bfloat16")
SETTING = re.compile(r"([\w-]+):(\d{1,9})(?::(" + "|".join(PRECISIONS) + "))?")
SETTINGS = ("ddim:250", "ddim:20", "dpm:20", "dpm:10", "dpm:8", "sde-dpm:10", "dpm:10:bfloat16")
SCORES = {  # as in the tables
    "crps": "CRPS",
    "crps_fair": "fair CRPS",
    "csi": "CSI-M",
    "csi_pool4": "CSI-pool4",
    "csi_pool16": "CSI-pool16",
    "spread_skill_ratio": "spread/skill",
    "spectrum_ratio_high": "octave",
}
RELATIVE = ("crps", "crps_fair", "spectrum_ratio_high")  # scores whose differences are shares of the reference
BARS = {"crps": 0.02, "csi": 0.01, "spectrum_ratio_high": 0.10}


@dataclass(frozen=True)
class Setting:
    """How to sample."""

    sampler: str
    steps: int  # network evaluations per segment
    precision: str

    @classmethod
    def parse(cls, text: str, precision: str) -> "Setting":
        """Read `sampler:steps[:PRECISION]`; `precision` stands where none is given."""
        found = SETTING.fullmatch(text)
        if not found or found[1] not in SAMPLERS:
            raise InputError(
                f"--settings {text}: write sampler:steps[:{'|'.join(PRECISIONS)}] "
                f"with one of the samplers {', '.join(SAMPLERS)}."
            )
        return cls(found[1], int(found[2]), found[3] or precision)

    def __str__(self) -> str:
        return f"{self.sampler}:{self.steps}:{self.precision}"

    def check(self, timesteps: int) -> None:
        """Raise `InputError` if the diffusion process does not have so many times."""
        if not 1 <= self.steps <= timesteps:
            raise InputError(f"--settings {self}: choose 1 to {timesteps} steps.")


def measure(
    model: DiffCast,
    dataset: Dataset,
    chosen: list[int],  # indices of the sequences
    setting: Setting,
    members: int,
    seed: int,
    forecast_batch: int,  # members at a time, of one sequence or more
) -> dict:
    """Scores of a setting, the same without each sequence in turn, and seconds."""
    device = next(model.parameters()).device
    per_batch = max(1, forecast_batch // members)
    batches = [chosen[first : first + per_batch] for first in range(0, len(chosen), per_batch)]
    scores, terms, seconds = new_scores(dataset, model.frames_out, members), [], []
    with tqdm(total=len(chosen), desc=str(setting), unit="seq", disable=None) as bar:
        for indices, frames in load_batches(dataset, batches, 0, device):
            observed, future = frames.tensor_split([model.frames_in], dim=1)
            draws = generators(device, seed, 3, indices.tolist())  # 3: as the evaluation draws them
            started = time.perf_counter()
            forecast = draw(model, observed, setting, members, draws, forecast_batch)
            seconds.append((time.perf_counter() - started) / (len(frames) * members))
            terms.append(scores.update(forecast, future))
            bar.update(len(frames))
    return {
        "evaluations": setting.steps * model.segments,
        "seconds": {"median": statistics.median(seconds), "shortest": min(seconds)},
        "forecast_batch": forecast_batch,
        "threads": torch.get_num_threads(),
        "scores": selected(scores),
        "left_out": leave_one_out(scores, {name: torch.cat([one[name] for one in terms]) for name in terms[0]}),
    }


def draw(model: DiffCast, observed: Tensor, setting: Setting, members: int, draws: list, forecast_batch: int) -> Tensor:
    """Ensemble `(B, M, T, C, H, W)` of the observed frames, on the host."""
    return model.forecast(
        observed,
        members,
        draws,
        sampler=setting.sampler,
        sampling_steps=setting.steps,
        forecast_batch=forecast_batch,
        precision=getattr(torch, setting.precision),
    ).cpu()


def new_scores(dataset: Dataset, leads: int, members: int) -> ScoreGroup:
    """The scores that `SCORES` selects from."""
    source = dataset.source
    return ScoreGroup(
        leads,
        {
            "categorical": CategoricalScores(source.scale, source.steps, leads),
            "ensemble": EnsembleScores(leads, members),
            "spectrum": PowerSpectrum(leads),
        },
    )


def selected(scores: ScoreGroup) -> dict[str, float]:
    """The values that are compared."""
    computed = scores.compute()
    return {name: computed[name] for name in SCORES}


def leave_one_out(scores: ScoreGroup, terms: dict[str, Tensor]) -> dict[str, list[float]]:
    """The scores without each sequence in turn; `terms` `(N, ...)` is what each has added to the sums."""
    sums, left_out = scores.state(), {name: [] for name in SCORES}
    for sequence in range(len(terms["ensemble/pixels"])):
        scores.load_state({name: total - terms[name][sequence] for name, total in sums.items()})
        for name, value in selected(scores).items():
            left_out[name].append(value)
    return left_out


def compare(row: dict, reference: dict) -> dict[str, dict]:
    """Differences of a row from the reference, their standard errors, and whether they are within the bars."""
    differences = {}
    for name in SCORES:
        value = contrast(name, row["scores"][name], reference["scores"][name]).item()
        error = jackknife_error(contrast(name, row["left_out"][name], reference["left_out"][name]))
        differences[name] = {"value": value, "standard_error": error}
        if name in BARS:
            differences[name]["within"] = verdict(value, error, BARS[name])
    return differences


def contrast(name: str, ours: list[float | None] | float | None, reference) -> np.ndarray:
    """Difference from the reference, as a share of it or in the score's units; None is NaN."""
    ours, reference = np.asarray(ours, dtype=float), np.asarray(reference, dtype=float)
    return ours / reference - 1 if name in RELATIVE else ours - reference


def jackknife_error(left_out: np.ndarray) -> float:
    """Standard error of an estimate from its values without each sample (Tukey 1958); that of a mean is the usual."""
    n = len(left_out)
    return math.sqrt((n - 1) * left_out.var())


def verdict(difference: float, error: float, bar: float) -> str:
    """Whether a difference is within a bar: yes, no or open; open too where there is no difference or error to tell."""
    if abs(difference) + 2 * error <= bar:
        return "yes"
    return "no" if abs(difference) - 2 * error > bar else "open"


def read_rows(path: Path, identity: dict) -> dict[str, dict]:
    """The settings that a file holds; raises `InputError` if it is of another measurement."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        differing = [name for name, value in identity.items() if content["identity"][name] != value]
        rows = content["settings"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--json {path} holds no measurement of this benchmark; name another file.") from None
    if differing:
        raise InputError(f"--json {path} was measured with another {' and '.join(differing)}; name another file.")
    return rows


def print_scores(rows: dict[str, dict], source, members: int) -> None:
    """The table of scores."""
    print(
        f"\nScores of {members} members on {source.name}; CRPS in units of {source.units}; octave: power in the "
        "highest, of observed 1"
    )
    header = ["", "evaluations", "s / member", *SCORES.values()]
    cells = []
    for name, row in rows.items():
        values = {key: np.nan if value is None else value for key, value in row["scores"].items()}
        values |= {key: source.scale * values[key] for key in ("crps", "crps_fair")}
        numbers = [f"{value:.{3 if key.startswith('crps') else 4}f}" for key, value in values.items()]
        cells.append([name, f"{row['evaluations']:,}", f"{row['seconds']['median']:.3f}", *numbers])
    print(format_table(header, cells))


def print_differences(rows: dict[str, dict], reference: str) -> None:
    """The table of differences and verdicts."""
    print(f"\nDifferences from {reference} and their standard errors; bars: CRPS 2 %, CSI-M 0.01, octave 10 %")
    cells = []
    for name, row in rows.items():
        if name == reference:
            continue
        found = row["differences"]
        numbers = [
            f"{100 * d['value']:+.2f} ({100 * d['standard_error']:.2f}) %"
            if key in RELATIVE
            else f"{d['value']:+.4f} ({d['standard_error']:.4f})"
            for key, d in found.items()
        ]
        outside = {answer: [SCORES[key] for key in BARS if found[key]["within"] == answer] for answer in ("no", "open")}
        verdicts = [f"{answer}: {', '.join(names)}" for answer, names in outside.items() if names]
        cells.append([name, *numbers, "; ".join(verdicts) or "yes"])
    print(format_table(["", *SCORES.values(), "within the bars"], cells))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_milestone", required=True, help="weights of a DiffCast: a file or checkpoint folder")
    parser.add_argument("--backbone", help="the weights' own class as package.module:Class, if they have one")
    parser.add_argument("--dataset", default="sevir", choices=list(DATASETS))
    parser.add_argument("--data_path", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--sequences", type=int, default=64, help="of the test split (default: %(default)s)")
    parser.add_argument("--members", type=int, default=8, help="of each ensemble (default: %(default)s)")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, metavar="SETTING", help="the first: the reference")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="of settings that do not say it")
    parser.add_argument("--forecast_batch", type=int, default=16, help="members at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the start noise (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, and go on from it")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure what the file does not hold, compare, print the tables."""
    for name in ("sequences", "forecast_batch"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(args, name)}.")
    if args.members < 2:
        raise InputError(f"--members {args.members} is no ensemble; give 2 or more.")
    settings = [Setting.parse(text, args.precision) for text in args.settings]
    weights = find_weights(args.ckpt_milestone, Path())
    model, architecture = load_forecaster(weights, args.backbone)
    if not isinstance(model, DiffCast):
        raise InputError(f"--ckpt_milestone {weights} holds a backbone, which samples nothing; name a DiffCast.")
    for setting in settings:
        setting.check(model.schedule.timesteps)
    place(model, torch.device("cuda" if torch.cuda.is_available() else "cpu")).eval()
    seq_len = model.frames_in + model.frames_out
    dataset = build_dataset(args.dataset, "test", args.data_path, architecture.frame_shape[-1], seq_len)
    chosen = spread(len(dataset), args.sequences)
    identity = {
        "checkpoint": sha256(weights),
        "data set": [dataset.source.name, len(dataset), digest_of_frames(dataset, chosen)],
        "number of sequences": len(chosen),
        "number of members": args.members,
        "seed": args.seed,
    }
    rows = read_rows(args.json, identity) if args.json else {}
    reference = str(settings[0])
    for setting in settings:
        name = str(setting)
        if name not in rows:
            rows[name] = measure(model, dataset, chosen, setting, args.members, args.seed, args.forecast_batch)
        for row in rows.values():  # those of the file may have had another reference
            row["differences"] = compare(row, rows[reference])
        if args.json:
            write(args.json, {"identity": identity, "reference": reference, "settings": rows})
    asked = {str(setting): rows[str(setting)] for setting in settings}
    print_scores(asked, dataset.source, args.members)
    print_differences(asked, reference)


def write(path: Path, result: dict) -> None:
    """Write the numbers, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(without_nan({"about": provenance()} | result), indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables, write the numbers."""
    args = build_parser().parse_args(argv)
    with exit_on_input_error():
        run(args)


if __name__ == "__main__":
    main()
