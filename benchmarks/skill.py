"""What residual diffusion adds to a backbone, at equal computing time, on synthetic storms: the small benchmark.

    python -m benchmarks.skill [--backbones simvp convgru] [--seeds 0 1 2] [--jobs 2]

For each backbone and seed three trainings of `run.py` with the arguments of `resources/mini_<backbone>.args`:

- `start`: the backbone, for about half of the budget;
- `diffcast`: DiffCast around that backbone, which stays as it is, for the rest of the budget;
- `alone`: the backbone for the whole budget, the control.

All are evaluated on the same sequences of the test split, each backbone, and advection, also dressed in residuals of
training sequences. Budgets are steps, chosen so that `start` and `diffcast` together take the processor time of `alone`
(see BUDGETS); what they really took is in the results. What is finished is not done again, what was interrupted is
resumed. The results appear in `Exps/benchmark/results`: `results.json`, `results.md` with tables and a comparison with
the results that come with the project, pictures, and a report for each backbone.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.skill_results import collect, write_results
from utils.errors import InputError, exit_on_input_error
from utils.files import replacing

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("Exps/benchmark")
PRESETS = Path("resources")
STORMS = Path("data/mini")
DATA = {"events": 4000, "size": 24, "resolution": 24, "seed": 0}
BASELINES = "Singleadvection_sevir/evaluation_advection"
BACKBONE_LR, DIFFUSION_LR = "4e-3", "6e-3"
# One thread per job: jobs that share cores slow each other many-fold. Freed memory is kept: returning it after each
# step, only to ask for it again, takes a fifth of the time.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}


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

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation_best"

    @property
    def cost(self) -> Path:
        """The file with the seconds that it took."""
        return RUNS / "logs" / f"{self.name}.json"

    def command(self, steps: int) -> list[str]:
        """The arguments of `run.py`."""
        words = [f"@{PRESETS / f'mini_{self.backbone}.args'}", "--seed", str(self.seed), "--resume"]
        words += ["--training_steps", str(steps), "--exp_note", f"{self.stage}_{self.seed}"]
        if self.stage != "diffcast":
            return [*words, "--lr", BACKBONE_LR]
        start = Training(self.backbone, self.seed, "start").folder / "checkpoints" / "best.safetensors"
        words += ["--use_diff", "--backbone_ckpt", str(start), "--freeze_backbone"]
        return [*words, "--lr", DIFFUSION_LR, "--mixed_precision", "bf16"]


class Runner:
    """Runs commands as processes of their own, each with a log."""

    def __init__(self):
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    def run(self, name: str, words: list[str], finished: Path, cost: Path | None = None) -> None:
        """Run `python words...` unless the file `finished` is there; raises `InputError` if it fails."""
        if finished.exists() or self.stopped.is_set():
            return
        log = RUNS / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._say(f"{name}: started, {log}")
        started = time.monotonic()
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if cost is not None:
            add_cost(cost, usage.ru_utime + usage.ru_stime)
        if process.returncode != 0:
            self.stopped.set()
            raise InputError(f"{name} ended with status {process.returncode}: see {log}; the same command goes on.")
        self._say(f"{name}: done in {(time.monotonic() - started) / 60:.1f} min")

    def _say(self, text: str) -> None:
        with self.lock:
            tqdm.write(f"{time.strftime('%H:%M')} {text}", file=sys.stdout)


def add_cost(path: Path, seconds: float) -> None:
    """Add processor seconds to those of earlier attempts."""
    earlier = json.loads(path.read_text())["cpu_seconds"] if path.exists() else 0.0
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"cpu_seconds": earlier + seconds}) + "\n")


def prepare(runner: Runner) -> None:
    """Generate the data."""
    options = [word for name, value in DATA.items() for word in (f"--{name}", str(value))]
    runner.run("storms", ["-m", "dataset.synthetic", "--out", str(STORMS), *options], STORMS / "CATALOG.csv")
    size = str(DATA["size"])
    packed = STORMS / "packed" / f"sevir_official_{size}"
    runner.run("packed", ["-m", "dataset.packed", "--data_path", str(STORMS), "--img_size", size], packed)


def train(runner: Runner, backbone: str, seed: int, stages: tuple[str, ...]) -> None:
    """Train and evaluate, one stage after the other."""
    for stage in stages:
        training = Training(backbone, seed, stage)
        words = ["run.py", *training.command(getattr(BUDGETS[backbone], stage))]
        runner.run(training.name, words, training.evaluation / "metrics.json", training.cost)


def run_all(backbones: list[str], seeds: list[int], jobs: int) -> None:
    """Generate the data, train and evaluate."""
    runner = Runner()
    prepare(runner)
    advection = [f"@{PRESETS / f'mini_{backbones[0]}.args'}", "--backbone", "advection", "--backbone_options", "--eval"]
    runner.run("advection", ["run.py", *advection], RUNS / BASELINES / "metrics.json")
    with ThreadPoolExecutor(jobs) as pool:
        futures: list[Future] = [
            pool.submit(train, runner, backbone, seed, stages)
            for seed in seeds
            for backbone in backbones
            for stages in (("start", "diffcast"), ("alone",))
        ]
    for future in futures:
        future.result()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(BUDGETS), choices=list(BUDGETS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time (default: one per processor)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and gather the results."""
    args = build_parser().parse_args(argv)
    with exit_on_input_error():
        if args.jobs < 1:
            raise InputError(f"--jobs must be at least 1, not {args.jobs}.")
        os.chdir(ROOT)
        run_all(args.backbones, args.seeds, args.jobs)
        runs = {
            backbone: {
                seed: {stage: Training(backbone, seed, stage) for stage in ("start", "diffcast", "alone")}
                for seed in args.seeds
            }
            for backbone in args.backbones
        }
        baselines = RUNS / BASELINES
        write_results(collect(runs, baselines), runs, baselines, RUNS / "results")
        print((RUNS / "results" / "results.md").read_text())


if __name__ == "__main__":
    main()
