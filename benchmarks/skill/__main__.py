"""The small benchmark: what residual diffusion adds to a backbone at equal computing time.

    python -m benchmarks.skill [--backbones simvp convgru] [--seeds 0 1 2] [--jobs 2]

On synthetic storms, there are three trainings of `run.py` for each backbone and seed, with the arguments of
`resources/mini_<backbone>.args`:

- `start`: the backbone, for about half of the budget;
- `diffcast`: DiffCast around that backbone, which stays as it is, for the rest of the budget;
- `alone`: the backbone for the complete budget, the control.

All are evaluated on the same sequences of the test split. Each backbone and advection are also dressed in residuals of
training sequences. Budgets are steps, chosen so that `start` and `diffcast` together take the processor time of `alone`
(see BUDGETS in trainings.py). The results hold the time that they really took. What is finished is not done again, what
was interrupted is resumed, and what another command made is refused. The results appear in `Exps/benchmark/results`, of
a selection of backbones or seeds in `Exps/benchmark/results_<backbones>_seeds_<seeds>`: `results.json`, `results.md`
with tables and a comparison with the results that come with the project, pictures, and a report for each backbone.
"""

import argparse
import os

from benchmarks.skill import trainings
from benchmarks.skill.jobs import add_jobs
from benchmarks.skill.results import collect, write_results
from utils.errors import exit_on_input_error
from utils.provenance import ROOT


def build_parser() -> argparse.ArgumentParser:
    """Define the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.skill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(trainings.BUDGETS)
    parser.add_argument("--backbones", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=trainings.SEEDS, help="(default: %(default)s)")
    add_jobs(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and gather the results."""
    args = build_parser().parse_args(argv)
    with exit_on_input_error():
        os.chdir(ROOT)
        runner = trainings.run_all(args.backbones, args.seeds, args.jobs)
        runs = {
            backbone: {
                seed: {stage: trainings.Training(backbone, seed, stage) for stage in ("start", "diffcast", "alone")}
                for seed in args.seeds
            }
            for backbone in args.backbones
        }
        selected = args.backbones if set(args.backbones) != set(trainings.BUDGETS) else []
        selected = selected if set(args.seeds) == set(trainings.SEEDS) else [*selected, "seeds", *map(str, args.seeds)]
        folder = trainings.RUNS / "_".join(["results", *selected])
        baselines = trainings.RUNS / trainings.BASELINES
        write_results(collect(runs, baselines, runner.cpu_seconds), runs, baselines, folder)
        print((folder / "results.md").read_text())


if __name__ == "__main__":
    main()
