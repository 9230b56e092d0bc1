"""Effects of single choices of training at equal processor time.

    python -m benchmarks.skill.choices [--seed 0] [--jobs 2]

The first training is DiffCast around ConvGRU of `python -m benchmarks.skill`, whose runs are used and, where missing,
made first. What is finished is not done again. `choices.json` and `choices.md` appear in the folder
`Exps/benchmark/choices_<seed>`.
"""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.skill import trainings
from benchmarks.skill.jobs import add_jobs, run_together
from benchmarks.skill.results import scores_of, training_steps
from benchmarks.skill.tables import interval, number, table_head, table_row
from diffcast.evaluation.results import without_nan
from diffcast.report.bootstrap import REPLICATES, differences
from diffcast.report.evaluation import find_entry
from utils.errors import exit_on_input_error
from utils.files import replacing
from utils.provenance import ROOT, provenance

BACKBONE = "convgru"
SCORES = {
    "crps": "CRPS",
    "csi": "CSI-M",
    "csi_pool4": "CSI-pool4",
    "spread_skill_ratio": "spread / skill",
    "spectrum_ratio_high": "octave",
}
DIGITS = {"crps": 4, "csi": 3, "csi_pool4": 3, "spread_skill_ratio": 2, "spectrum_ratio_high": 2}


@dataclass(frozen=True)
class Choice:
    """A training of DiffCast, in what differs from the benchmark's."""

    about: str
    steps: int  # about as many as fit into the same time
    options: str  # of `run.py`, after the benchmark's
    start: bool = True  # from the backbone that was trained by itself
    frozen: bool = True  # which stays as it is


CHOICES = {
    "together": Choice("backbone and diffusion together", 1080, "--lr 2e-3 --diffusion_weight 0.5", frozen=False),
    "together-0.9": Choice("the same, another alpha", 1080, "--lr 2e-3 --diffusion_weight 0.9", frozen=False),
    "scratch": Choice("end to end from scratch", 2150, "--lr 4e-3 --diffusion_weight 0.5", start=False, frozen=False),
    "signal": Choice("official loss weight", 1300, "--loss_weight signal"),
}


def training_of(choice: str, seed: int) -> trainings.Training:
    """Return what names a choice's training and the folder of its results."""
    return trainings.Training(BACKBONE, seed, f"choice_{choice}")


def command(choice: Choice, training: trainings.Training) -> list[str]:
    """Return the arguments of `run.py`."""
    words = trainings.Training(BACKBONE, training.seed, "diffcast").command(choice.steps)
    if not choice.frozen:
        words.remove("--freeze_backbone")
    if not choice.start:
        at = words.index("--backbone_ckpt")
        del words[at : at + 2]
    return [*words, *choice.options.split(), "--exp_note", training.note]


def run_all(seed: int, jobs: int) -> dict:
    """Train and evaluate what is missing; returns JSON-ready results."""
    runner = trainings.prepared_runner()
    trainings.train(runner, BACKBONE, seed, ("start", "diffcast"))
    runs = {name: training_of(name, seed) for name in CHOICES}
    tasks = [
        partial(runner.run, run.name, ["run.py", *command(CHOICES[name], run)], run.folder, trainings.RESULTS)
        for name, run in runs.items()
    ]
    run_together(runner, jobs, tasks)
    benchmark = trainings.Training(BACKBONE, seed, "diffcast")
    rows = collect({"benchmark": benchmark, **runs}, runner.cpu_seconds)
    return without_nan(
        {
            "about": provenance(),
            "data": "synthetic storms",
            "backbone": BACKBONE,
            "seed": seed,
            "replicates": REPLICATES,
            "rows": rows,
        }
    )


def collect(runs: dict[str, trainings.Training], cpu_seconds: Callable[[str], float]) -> dict:
    """Gather the scores of all runs, and their differences from the first."""
    entries = [find_entry(str(run.folder)) for run in runs.values()]
    found, _ = differences(entries, REPLICATES)
    rows = {
        name: {
            "command": entry.evaluation.metrics["about"]["command"],
            "training_steps": training_steps(run.folder),
            "cpu_seconds": cpu_seconds(run.name),
            "scores": scores_of(entry),
            "trend": scores_of(find_entry(f"{run.folder}:trend")),
            "dressed": scores_of(find_entry(f"{run.folder}:dressed")),
        }
        for (name, run), entry in zip(runs.items(), entries, strict=True)
    }
    for row, each in zip(list(rows.values())[1:], found, strict=True):
        row["minus_benchmark"] = {key: difference._asdict() for key, difference in each.items()}
    return rows


def table(rows: dict) -> list[str]:
    """Lay out the table of the documents."""
    lines = table_head(["", "options", "steps", *SCORES.values(), "CRPS minus the first"])
    for name, row in rows.items():
        about, options = (
            (CHOICES[name].about, f"`{CHOICES[name].options}`")
            if name in CHOICES
            else ("as in the small benchmark", "")
        )
        scores = [number(row["scores"][key], digits) for key, digits in DIGITS.items()]
        difference = interval(row["minus_benchmark"]["crps"]) if "minus_benchmark" in row else ""
        lines.append(table_row([about, options, str(row["training_steps"]), *scores, difference]))
    return lines


def write_results(results: dict, folder: Path) -> None:
    """Write `choices.json` and `choices.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"choices.json": json.dumps(results, indent=1), "choices.md": "\n".join(table(results["rows"]))}
    for file, text in texts.items():
        with replacing(folder / file) as temporary:
            temporary.write_text(text + "\n")


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and gather the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    add_jobs(parser)
    args = parser.parse_args(argv)
    with exit_on_input_error():
        os.chdir(ROOT)
        results = run_all(args.seed, args.jobs)
        write_results(results, trainings.RUNS / f"choices_{args.seed}")
        print("\n".join(table(results["rows"])))


if __name__ == "__main__":
    main()
