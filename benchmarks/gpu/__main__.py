"""Correctness, speed, memory and determinism of DiffCast on a GPU, in minutes.

    python -m benchmarks.gpu --out gpu.json [--budget 7.5] [--only device golden] [--toy]

Each section (see `SECTIONS`) runs in its own process and is stopped at its time limit. Its rows are written as soon as
they are measured, also if the section fails later. A section that no longer fits into the budget is skipped. The exit
status is 1 if any section failed. Without a GPU, the sections run on the processor, which takes hours except at `--toy`
sizes. Peak memory is that of PyTorch's allocator. The share of the peak is relative to a matrix product measured by the
same process. float32 multiplies in TF32, except for golden outputs and the references of precision.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.speed.measuring import table
from utils.errors import InputError, exit_on_input_error
from utils.files import replacing, writable_folder
from utils.provenance import ROOT, provenance

LOG_LINES = 40  # of a section that failed


class Section(NamedTuple):
    """A section's title and limits of its time in seconds."""

    title: str
    least: int  # without which it is not worth starting
    most: int


SECTIONS = {
    "device": Section("The device", 10, 40),
    "golden": Section("Outputs of the official models, TF32 off: largest absolute difference", 15, 60),
    "float32": Section("Training steps in float32 (TF32), by the real loop", 30, 80),
    "bf16": Section("Training steps in bfloat16, by the real loop", 30, 80),
    "forecasts": Section("Forecasts", 40, 120),
    "determinism": Section("Determinism", 25, 60),
    "commands": Section("The commands, at toy size", 20, 60),
    "precision": Section("Precision and torch.compile against float32 (TF32 off)", 40, 140),
    "compile": Section("Training steps in bfloat16, compiled", 60, 120),
    "processes": Section("Two processes on two GPUs", 30, 60),
}


def run_section(name: str, seconds: float, toy: bool, folder: Path) -> dict:
    """Run a section in its own process, and return status, rows and reason of a failure."""
    rows, log, started = folder / f"{name}.json", folder / f"{name}.log", time.time()
    words = [name, str(rows), "--folder", str(folder), "--until", str(started + 0.9 * seconds), *["--toy"] * toy]
    reason = None
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.sections", *words],
            cwd=ROOT,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if process.wait(seconds) != 0:
                reason = f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"stopped after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    result = {"status": "failed" if reason else "done", "seconds": time.time() - started}
    if reason:
        result |= {"reason": reason, "log": log.read_text(errors="replace").splitlines()[-LOG_LINES:]}
    return result | {"rows": json.loads(rows.read_text()) if rows.exists() else []}


def report(name: str, result: dict) -> None:
    """Print a section."""
    print(f"\n{SECTIONS[name].title} ({name}: {result['status']}, {result['seconds']:.0f} s)")
    if result["rows"]:
        print(table(result["rows"]))
    if result["status"] != "done":
        print(f"{result['status']}: {result['reason']}", *result.get("log", []), sep="\n    ")
    sys.stdout.flush()


def run(args: argparse.Namespace) -> bool:
    """Run, print and write the sections; return whether none failed."""
    if args.budget <= 0:
        raise InputError(f"--budget must be above 0 minutes, not {args.budget:g}.")
    writable_folder(args.out.parent, "the numbers")
    end = time.monotonic() + 60 * args.budget
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            section, left = SECTIONS[name], end - time.monotonic()
            if left < section.least:
                reason = f"{max(0, left):.0f} s are left of the budget, and it needs {section.least}"
                results[name] = {"status": "skipped", "reason": reason, "seconds": 0.0, "rows": []}
            else:
                results[name] = run_section(name, min(left, section.most), args.toy, Path(folder))
            report(name, results[name])
            with replacing(args.out) as temporary:
                result = {"about": provenance(), "toy": args.toy, "budget": args.budget, "sections": results}
                temporary.write_text(json.dumps(result, indent=1) + "\n")
    return all(result["status"] != "failed" for result in results.values())


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="write the numbers to this file")
    parser.add_argument("--budget", type=float, default=7.5, help="minutes for everything together")
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), help="sections to run")
    parser.add_argument("--toy", action="store_true", help="sizes for a processor, which show only that all of it runs")
    args = parser.parse_args(argv)
    with exit_on_input_error():
        sys.exit(0 if run(args) else 1)


if __name__ == "__main__":
    main()
