"""Diffusion against scoring rules at equal processor time.

    python -m benchmarks.skill.objectives [--arms diffusion crps] [--seeds 0 1 2] [--jobs 2]

Each arm trains DiffCast around ConvGRU end to end from scratch, on the storms of `python -m benchmarks.skill` and for
as long as the others. Its weights are evaluated with the samplers that suit them. What is finished is not done again.
`objectives.json` and `objectives.md` appear in `Exps/benchmark/objectives`.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.skill import trainings
from benchmarks.skill.jobs import Runner, add_jobs, run_together
from benchmarks.skill.tables import SCORES, interval, mean_of, number, table_head, table_row
from benchmarks.skill.trainings import Training
from diffcast.evaluation.results import without_nan
from diffcast.report.bootstrap import REPLICATES, differences
from diffcast.report.evaluation import Entry, find_entry
from utils.errors import exit_on_input_error
from utils.files import replacing
from utils.provenance import ROOT, provenance

BACKBONE = "convgru"
RECIPE = "--use_diff --lr 4e-3 --diffusion_weight 0.5 --mixed_precision no"  # as the budgets were measured
NO_TREND = "--backbone benchmarks.skill.no_trend:NoTrend --backbone_options --residual_scale auto"
Sampling = tuple[str, int]  # sampler, evaluations per segment


@dataclass(frozen=True)
class Arm:
    """A training, in what differs from the others', and what its weights are sampled with."""

    about: str
    steps: int
    options: str = ""  # of `run.py`, after RECIPE
    network: str = ""  # further options, which an evaluation needs too
    start: str = ""  # arm that it goes on from
    samplings: tuple[Sampling, ...] = ()


# Steps were chosen so that all arms take the time of 2150 steps of diffusion, measured on one core without bfloat16.
ARMS = {
    "diffusion": Arm(
        "diffusion",
        2150,
        samplings=(("dpm", 10), ("dpm", 4), ("dpm", 2), ("dpm", 1), ("ddim", 4), ("ddim", 2), ("ddim", 1)),
    ),
    "crps": Arm("CRPS", 1885, "--objective crps", samplings=(("ddim", 1),)),
    "part": Arm("diffusion, the first 60 %", 1290),
    "tuned": Arm("diffusion, then CRPS", 750, "--objective crps --lr 2e-3", start="part", samplings=(("ddim", 1),)),
    "hybrid": Arm("hybrid", 1970, "--objective hybrid", samplings=(("ddim", 4), ("ddim", 2), ("ddim", 1))),
    "no_trend": Arm("diffusion without a trend", 2990, network=NO_TREND, samplings=(("dpm", 10),)),
}
REFERENCE = ("diffusion", ("dpm", 10))


def training_of(arm: str, seed: int) -> Training:
    """Return what names an arm's training and the folder of its checkpoints."""
    return Training(BACKBONE, seed, f"objective_{arm}")


def evaluation_of(arm: str, sampling: Sampling, seed: int) -> Training:
    """Return what names an evaluation and the folder of its results."""
    sampler, steps = sampling
    return Training(BACKBONE, seed, f"objective_{arm}_{sampler}{steps}")


def best_of(training: Training) -> str:
    """The weights with the lowest validation loss."""
    return str(folder_of(training) / "checkpoints" / "best.safetensors")


def folder_of(training: Training) -> Path:
    """The folder of a training, whose backbone may be our own class."""
    found = [*trainings.RUNS.glob(f"Diff*_sevir_{training.note}")]
    return found[0] if found else training.folder


def run_arm(runner: Runner, name: str, seed: int) -> None:
    """Train an arm and evaluate its weights."""
    arm, training = ARMS[name], training_of(name, seed)
    preset = f"@{trainings.PRESETS / f'mini_{BACKBONE}.args'}"
    words = [preset, "--seed", str(seed), *RECIPE.split(), "--no_eval", "--resume", "--exp_note", training.note]
    words += ["--training_steps", str(arm.steps), *arm.options.split(), *arm.network.split()]
    if arm.start:
        run_arm(runner, arm.start, seed)
        words += ["--init_ckpt", best_of(training_of(arm.start, seed))]
    last = f"checkpoints/*{arm.steps}*"
    runner.run(training.name, ["run.py", *words], folder_of(training), last)
    for sampling in arm.samplings:
        own = evaluation_of(name, sampling, seed)
        words = [preset, *arm.network.split(), "--eval", "--ckpt_milestone", best_of(training), "--exp_note", own.note]
        words += ["--sampler", sampling[0], "--sampling_steps", str(sampling[1])]
        runner.run(own.name, ["run.py", *words], folder_of(own), trainings.RESULTS)


def finished(seed: int) -> dict[str, Entry]:
    """The evaluations of a seed that are there, the reference first."""
    rows = [(name, sampling) for name, arm in ARMS.items() for sampling in arm.samplings]
    folders = {_label(*row): folder_of(evaluation_of(*row, seed)) for row in rows}
    return {name: find_entry(str(one)) for name, one in folders.items() if any(one.glob(trainings.RESULTS))}


def collect(seeds: Sequence[int], cpu_seconds: Callable[[str], float]) -> dict:
    """Gather scores by seed and row, and differences from the reference, JSON-ready."""
    found = {}
    for seed in seeds:
        entries = finished(seed)
        rows = {name: {key: entry.scores.get(key) for key in SCORES} for name, entry in entries.items()}
        if next(iter(entries), None) == _label(*REFERENCE):
            others, _ = differences(list(entries.values()), REPLICATES)
            for name, each in zip(list(entries)[1:], others, strict=True):
                rows[name]["minus_reference"] = {key: one._asdict() for key, one in each.items()}
        trained = {name: training_of(name, seed).name for name in ARMS if folder_of(training_of(name, seed)).exists()}
        found[str(seed)] = {"scores": rows, "cpu_seconds": {arm: cpu_seconds(name) for arm, name in trained.items()}}
    about = {"about": provenance(), "data": "synthetic storms", "backbone": BACKBONE, "replicates": REPLICATES}
    return without_nan(about | {"seeds": found})


def table(results: dict) -> list[str]:
    """Lay out the table of the documents, with means over the seeds and differences of each."""
    seeds = results["seeds"].values()
    lines = table_head(["", *(heading for heading, _ in SCORES.values()), "CRPS minus the first, by seed"])
    for name in dict.fromkeys(name for seed in seeds for name in seed["scores"]):
        rows = [seed["scores"][name] for seed in seeds if name in seed["scores"]]
        scores = [number(mean_of([row[key] for row in rows]), digits) for key, (_, digits) in SCORES.items()]
        minus = [interval(row["minus_reference"]["crps"]) for row in rows if "minus_reference" in row]
        lines.append(table_row([name, *scores, ", ".join(minus)]))
    return lines


def write_results(results: dict, folder: Path) -> None:
    """Write `objectives.json` and `objectives.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"objectives.json": json.dumps(results, indent=1), "objectives.md": "\n".join(table(results))}
    for file, text in texts.items():
        with replacing(folder / file) as temporary:
            temporary.write_text(text + "\n")


def _label(arm: str, sampling: Sampling) -> str:
    sampler, steps = sampling
    return f"{ARMS[arm].about}, {sampler} {steps}"


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and gather the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.skill.objectives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [name for name, arm in ARMS.items() if arm.samplings]
    parser.add_argument("--arms", nargs="+", default=names, choices=names, metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=trainings.SEEDS, help="(default: %(default)s)")
    add_jobs(parser)
    args = parser.parse_args(argv)
    with exit_on_input_error():
        os.chdir(ROOT)
        runner = trainings.prepared_runner()
        tasks = [partial(run_arm, runner, name, seed) for seed in args.seeds for name in args.arms]
        run_together(runner, args.jobs, tasks)
        results = collect(args.seeds, runner.cpu_seconds)
        write_results(results, trainings.RUNS / "objectives")
        print("\n".join(table(results)))


if __name__ == "__main__":
    main()
