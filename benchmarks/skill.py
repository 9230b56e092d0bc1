"""What residual diffusion adds to a backbone, at equal computing time, on synthetic storms: the small benchmark.

    python -m benchmarks.skill [--backbones simvp convgru] [--seeds 0 1 2] [--jobs 2]

For each backbone and seed three trainings of `run.py` with the arguments of `resources/mini_<backbone>.args`:

- `start`: the backbone, for about half of the budget;
- `diffcast`: DiffCast around that backbone, which stays as it is, for the rest of the budget;
- `alone`: the backbone for the whole budget, the control.

All are evaluated on the same sequences of the test split, each backbone, and advection, also dressed in residuals of
training sequences. Budgets are steps, chosen so that `start` and `diffcast` together take the processor time of `alone`
(see BUDGETS); what they really took is in the results. What is finished is not done again, what was interrupted is
resumed, and what another command made is refused. The results appear in `Exps/benchmark/results`, of some backbones or
seeds in `Exps/benchmark/results_<backbones>_seeds_<seeds>`: `results.json`, `results.md` with tables and a comparison
with the results that come with the project, pictures, and a report for each backbone.
"""

import argparse
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.jobs import Runner, run_together
from benchmarks.skill_results import collect, write_results
from utils.errors import InputError, exit_on_input_error
from utils.processors import processors

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("Exps/benchmark")
PRESETS = Path("resources")
STORMS = Path("data/mini")
DATA = {"events": 4000, "size": 24, "resolution": 24, "seed": 0}
BASELINES = "Singleadvection_sevir"
SEEDS = [0, 1, 2]
RESULTS = "evaluation_*/metrics.json"  # that a run leaves when all is done
BACKBONE_LR, DIFFUSION_LR = "4e-3", "6e-3"


@dataclass(frozen=True)
class Budget:
    """Training steps of the three trainings of a backbone."""

    start: int
    diffcast: int
    alone: int


# `alone` has the processor time of the other two: seconds per step were measured on one core of a server processor.
BUDGETS = {
    "simvp": Budget(start=3100, diffcast=1300, alone=7000),
    "convgru": Budget(start=4500, diffcast=1300, alone=10200),
    "phydnet": Budget(start=1500, diffcast=1300, alone=3400),
    "earthformer": Budget(start=800, diffcast=1300, alone=1750),
}


@dataclass(frozen=True)
class Training:
    """One of the trainings: what to run, and where its results appear."""

    backbone: str
    seed: int
    stage: str  # start, diffcast or alone

    @property
    def name(self) -> str:
        return f"{self.backbone}_{self.stage}_{self.seed}"

    @property
    def folder(self) -> Path:
        kind = "Diff" if self.stage == "diffcast" else "Single"
        return RUNS / f"{kind}{self.backbone}_sevir_{self.stage}_{self.seed}"

    def command(self, steps: int) -> list[str]:
        """The arguments of `run.py`."""
        words = [f"@{PRESETS / f'mini_{self.backbone}.args'}", "--seed", str(self.seed), "--resume"]
        words += ["--training_steps", str(steps), "--exp_note", f"{self.stage}_{self.seed}"]
        if self.stage != "diffcast":
            return [*words, "--lr", BACKBONE_LR, "--mixed_precision", "no"]  # as the budgets were measured
        start = Training(self.backbone, self.seed, "start").folder / "checkpoints" / "best.safetensors"
        words += ["--use_diff", "--backbone_ckpt", str(start), "--freeze_backbone"]
        return [*words, "--lr", DIFFUSION_LR]


def prepared_runner() -> Runner:
    """What runs the commands, once it has generated the data."""
    runner = Runner(ROOT, RUNS / "logs")
    options = [word for name, value in DATA.items() for word in (f"--{name}", str(value))]
    runner.run("storms", ["-m", "dataset", "synthetic", "--out", str(STORMS), *options], STORMS, "CATALOG.csv")
    size = str(DATA["size"])
    words = ["-m", "dataset", "pack", "--data_path", str(STORMS), "--img_size", size]
    runner.run("packed", words, STORMS / "packed", f"sevir_official_{size}")
    return runner


def train(runner: Runner, backbone: str, seed: int, stages: tuple[str, ...]) -> None:
    """Train and evaluate, one stage after the other."""
    for stage in stages:
        training = Training(backbone, seed, stage)
        words = ["run.py", *training.command(getattr(BUDGETS[backbone], stage))]
        runner.run(training.name, words, training.folder, RESULTS)


def run_all(backbones: list[str], seeds: list[int], jobs: int) -> Runner:
    """Generate the data, train and evaluate; returns what ran it all."""
    runner = prepared_runner()
    advection = [f"@{PRESETS / 'mini_convgru.args'}", "--backbone", "advection", "--backbone_options", "--eval"]
    runner.run("advection", ["run.py", *advection], RUNS / BASELINES, RESULTS)
    tasks = [
        partial(train, runner, backbone, seed, stages)
        for seed in seeds
        for backbone in backbones
        for stages in (("start", "diffcast"), ("alone",))
    ]
    run_together(runner, jobs, tasks)
    return runner


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(BUDGETS), choices=list(BUDGETS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=processors(), help="at a time (default: one per processor)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and gather the results."""
    args = build_parser().parse_args(argv)
    with exit_on_input_error():
        if args.jobs < 1:
            raise InputError(f"--jobs must be at least 1, not {args.jobs}.")
        os.chdir(ROOT)
        runner = run_all(args.backbones, args.seeds, args.jobs)
        runs = {
            backbone: {
                seed: {stage: Training(backbone, seed, stage) for stage in ("start", "diffcast", "alone")}
                for seed in args.seeds
            }
            for backbone in args.backbones
        }
        some = args.backbones if set(args.backbones) != set(BUDGETS) else []
        some = some if set(args.seeds) == set(SEEDS) else [*some, "seeds", *map(str, args.seeds)]
        folder = RUNS / "_".join(["results", *some])
        baselines = RUNS / BASELINES
        write_results(collect(runs, baselines, runner.cpu_seconds), runs, baselines, folder)
        print((folder / "results.md").read_text())


if __name__ == "__main__":
    main()
