"""The benchmark on real radar: a model forecasts each day without having seen it.

    python -m benchmarks.skill.real --radar FOLDER [--arms crps] [--days fmi_2016] [--km 4] [--hours 8]

FOLDER holds the example data of pysteps. Four days of three services become reflectivity, see
`benchmarks.skill.radar`. For each day and seed, each arm is trained on crops of the other three days, and forecasts
complete maps of the day that was left out. Persistence, advection, S-PROG and STEPS forecast the same maps. All are
scored on the same tiles of 256 km. The last weights are evaluated, and nothing is chosen by validation.

What is finished is not done again, what was interrupted is resumed, and `--hours` ends the work early. `real.json` and
`real.md` appear in `Exps/benchmark/real_<km>km/results`, with all that is finished.
"""

import argparse
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.skill import trainings
from benchmarks.skill.jobs import Runner, add_jobs, run_together
from benchmarks.skill.radar import DAYS, KM, prepare
from benchmarks.skill.tables import SCORES, interval, mean_of, number, table_head, table_row
from diffcast.evaluation.results import without_nan
from diffcast.report.bootstrap import REPLICATES, SEED, difference, replicated_scores, resampling_weights
from diffcast.report.evaluation import Entry, find_entry
from utils.errors import exit_on_input_error
from utils.files import replacing
from utils.provenance import ROOT, provenance

PRESET = trainings.PRESETS / "real_convgru.args"
START = trainings.PRESETS / "diffcast_demo.safetensors"
SCORING = "--eval --whole_map --stride 5 --members 8 --num_workers 0 --forecast_batch 8"
BASELINES = ("persistence", "advection", "extrapolation", "sprog", "steps")
REFERENCE = "steps"
CROP = 256  # km
SEEDS = [0, 1]


@dataclass(frozen=True)
class Arm:
    """A training, in what differs from the others'."""

    about: str
    steps: int
    options: str  # of `run.py`, after the preset


ARMS = {
    "crps": Arm("CRPS, from weights of synthetic storms", 300, f"--objective crps --lr 2e-3 --init_ckpt {START}"),
    "diffusion": Arm("diffusion, from weights of synthetic storms", 330, f"--lr 2e-3 --init_ckpt {START}"),
    "scratch": Arm("CRPS, from scratch", 300, "--objective crps --lr 4e-3"),
}


@dataclass(frozen=True)
class Runs:
    """The trainings and evaluations at one resolution."""

    km: int  # width of a pixel

    @property
    def folder(self) -> Path:
        """What is prepared and done at this resolution."""
        return trainings.RUNS / f"real_{self.km}km"

    def run_baselines(self, runner: Runner, day: str) -> None:
        """Score the simple forecasts of a day."""
        words = [*self._words(day, day), *SCORING.split(), "--backbone", BASELINES[0], "--backbone_options"]
        words += ["--baselines", *BASELINES[1:]]
        runner.run(f"baselines_{day}", words, self.baselines_of(day), trainings.RESULTS)

    def run_arm(self, runner: Runner, name: str, day: str, seed: int) -> None:
        """Train an arm on the other days, and score its forecasts of a day."""
        arm, note = ARMS[name], f"{name}_{day}_{seed}"
        training, folder = self._words(day, note), self.folder_of(name, day, seed)
        training += ["--use_diff", *arm.options.split(), "--seed", str(seed), "--training_steps", str(arm.steps)]
        runner.run(note, [*training, "--no_eval", "--resume"], folder, f"checkpoints/ckpt-{arm.steps}")
        scoring = [*self._words(day, note), "--use_diff", *SCORING.split(), "--dress", "--baselines"]
        runner.run(f"{note}_scores", [*scoring, "--ckpt_milestone", str(arm.steps)], folder, trainings.RESULTS)

    def folder_of(self, arm: str, day: str, seed: int) -> Path:
        """The folder of an arm's training and scores."""
        return self.folder / f"Diffconvgru_frames_{arm}_{day}_{seed}"

    def baselines_of(self, day: str) -> Path:
        """The folder of the scores of simple forecasts."""
        return self.folder / f"Single{BASELINES[0]}_frames_{day}"

    def entries_of(self, day: str, seed: int) -> dict[str, Entry]:
        """What is finished of a day, by row of the tables."""
        simple = self.baselines_of(day)
        named = {name: f"{simple}:{name}" for name in BASELINES} if any(simple.glob(trainings.RESULTS)) else {}
        for arm in ARMS:
            folder = self.folder_of(arm, day, seed)
            if any(folder.glob(trainings.RESULTS)):
                named |= {arm: str(folder), f"{arm}, trend": f"{folder}:trend", f"{arm}, dressed": f"{folder}:dressed"}
        return {name: find_entry(path) for name, path in named.items()}

    def _words(self, day: str, note: str) -> list[str]:
        """What all commands have in common."""
        options = ["--data_path", str(self.folder / day), "--crop", str(CROP // self.km), "--exp_note", note]
        return ["run.py", f"@{PRESET}", *options, "--exp_dir", os.path.relpath(self.folder, "Exps")]


def replicas_of(entry: Entry) -> dict[str, np.ndarray]:
    """Scores `(1 + replicates,)` of a day, whose tiles are drawn with replacement."""
    ids = sorted(entry.evaluation.events)
    tiles = [name.split("_", 1)[1] for name in ids]
    return replicated_scores(entry, ids, resampling_weights(tiles, REPLICATES, SEED))


def collect(runs: Runs, days: Sequence[str], seeds: Sequence[int]) -> dict:
    """Gather scores by day, seed and row, and differences from STEPS over the days, JSON-ready."""
    found = {seed: {day: runs.entries_of(day, seed) for day in days} for seed in seeds}
    scores = {
        str(seed): {
            day: {name: {key: entry.scores.get(key) for key in SCORES} for name, entry in entries.items()}
            for day, entries in of_day.items()
        }
        for seed, of_day in found.items()
    }
    about = {"about": provenance(), "km": runs.km, "days": list(days), "replicates": REPLICATES}
    against = {str(seed): _against(of_day) for seed, of_day in found.items()}
    return without_nan(about | {"scores": scores, "minus_steps": against})


def _against(days: dict[str, dict[str, Entry]]) -> dict:
    """CRPS minus that of STEPS of the rows that all days have, by day and as a mean of the days."""
    common = set.intersection(*(set(entries) for entries in days.values()))
    if REFERENCE not in common:
        return {}
    crps = {day: {name: replicas_of(days[day][name])["crps"] for name in common} for day in days}
    minus = {name: {day: crps[day][name] - crps[day][REFERENCE] for day in days} for name in common - {REFERENCE}}
    return {
        name: {day: difference(one)._asdict() for day, one in of_day.items()}
        | {"mean": difference(np.mean(list(of_day.values()), axis=0))._asdict()}
        for name, of_day in minus.items()
    }


def tables(results: dict) -> list[str]:
    """Lay out a table of scores for each seed: the means over days, and CRPS by day."""
    lines = []
    for seed, days in results["scores"].items():
        headings = [heading for heading, _ in SCORES.values()]
        lines += ["", f"Seed {seed}", "", *table_head(["", *headings, *days, "CRPS minus that of STEPS"])]
        for name in dict.fromkeys(name for rows in days.values() for name in rows):
            rows = [rows[name] for rows in days.values() if name in rows]
            values = [number(mean_of([row[key] for row in rows]), digits) for key, (_, digits) in SCORES.items()]
            by_day = [number(of_day[name]["crps"], 4) if name in of_day else "" for of_day in days.values()]
            minus = results["minus_steps"][seed].get(name)
            lines.append(table_row([name, *values, *by_day, interval(minus["mean"]) if minus else ""]))
    return lines


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and gather the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.skill.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--radar", type=Path, required=True, help="folder with the example data of pysteps")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM")
    parser.add_argument("--days", nargs="+", default=list(DAYS), choices=DAYS, metavar="DAY")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="(default: %(default)s)")
    parser.add_argument("--km", type=int, default=KM, choices=(2, 4, 8), help="width of a pixel (default: %(default)s)")
    parser.add_argument("--hours", type=float, help="stop after this time; the same command continues")
    add_jobs(parser)
    args = parser.parse_args(argv)
    radar = args.radar.resolve()
    with exit_on_input_error():
        os.chdir(ROOT)
        runs = Runs(args.km)
        prepare(radar, runs.folder, args.km)
        runner = Runner(ROOT, runs.folder / "logs")
        tasks = [partial(runs.run_baselines, runner, day) for day in args.days]
        tasks += [
            partial(runs.run_arm, runner, arm, day, seed)
            for seed in args.seeds
            for arm in args.arms
            for day in args.days
        ]
        clock = threading.Timer(3600 * args.hours, runner.stop) if args.hours else None
        if clock:
            clock.daemon = True
            clock.start()
        run_together(runner, args.jobs, tasks)
        write_results(collect(runs, args.days, args.seeds), runs.folder / "results")


def write_results(results: dict, folder: Path) -> None:
    """Write `real.json` and `real.md`, and print the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(tables(results)).strip()
    for file, text in {"real.json": json.dumps(results, indent=1), "real.md": lines}.items():
        with replacing(folder / file) as temporary:
            temporary.write_text(text + "\n")
    print(lines)


if __name__ == "__main__":
    main()
