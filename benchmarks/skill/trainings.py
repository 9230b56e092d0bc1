"""The trainings of the small benchmark and what evaluates them. See `benchmarks.skill`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.skill.jobs import Runner, run_together
from utils.provenance import ROOT

RUNS = Path("Exps/benchmark")
PRESETS = Path("resources")
STORMS = Path("data/mini")
DATA = {"events": 4000, "size": 24, "resolution": 24, "seed": 0}
BASELINES = "Singleadvection_sevir"
SEEDS = [0, 1, 2]
RESULTS = "evaluation_*/metrics.json"  # pattern of the file that a run writes last
BACKBONE_LR, DIFFUSION_LR = "4e-3", "6e-3"


@dataclass(frozen=True)
class Budget:
    """Training steps of a backbone's three trainings."""

    start: int
    diffcast: int
    alone: int


# `alone` has the processor time of the other two. Seconds per step were measured on one core of a server processor.
BUDGETS = {
    "simvp": Budget(start=3100, diffcast=1300, alone=7000),
    "convgru": Budget(start=4500, diffcast=1300, alone=10200),
    "phydnet": Budget(start=1500, diffcast=1300, alone=3400),
    "earthformer": Budget(start=800, diffcast=1300, alone=1750),
}


@dataclass(frozen=True)
class Training:
    """A training, its command and the folder of its results."""

    backbone: str
    seed: int
    stage: str  # start, diffcast, alone or a choice's

    @property
    def name(self) -> str:
        return f"{self.backbone}_{self.stage}_{self.seed}"

    @property
    def note(self) -> str:
        return f"{self.stage}_{self.seed}"

    @property
    def folder(self) -> Path:
        kind = "Single" if self.stage in ("start", "alone") else "Diff"
        return RUNS / f"{kind}{self.backbone}_sevir_{self.note}"

    def command(self, steps: int) -> list[str]:
        """Return the arguments of `run.py`."""
        words = [f"@{PRESETS / f'mini_{self.backbone}.args'}", "--seed", str(self.seed), "--resume"]
        words += ["--training_steps", str(steps), "--exp_note", self.note]
        if self.stage != "diffcast":
            return [*words, "--lr", BACKBONE_LR, "--mixed_precision", "no"]  # as the budgets were measured
        start = Training(self.backbone, self.seed, "start").folder / "checkpoints" / "best.safetensors"
        words += ["--use_diff", "--backbone_ckpt", str(start), "--freeze_backbone"]
        return [*words, "--lr", DIFFUSION_LR]


def prepared_runner() -> Runner:
    """Generate the data and return what runs the commands."""
    runner = Runner(ROOT, RUNS / "logs")
    options = [word for name, value in DATA.items() for word in (f"--{name}", str(value))]
    runner.run("storms", ["-m", "dataset", "synthetic", "--out", str(STORMS), *options], STORMS, "CATALOG.csv")
    size = str(DATA["size"])
    words = ["-m", "dataset", "pack", "--data_path", str(STORMS), "--img_size", size]
    runner.run("packed", words, STORMS / "packed", f"sevir_{size}")
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
