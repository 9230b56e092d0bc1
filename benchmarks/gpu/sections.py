"""The sections of `benchmarks.gpu`, which starts a process for each."""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.bench import PRECISIONS, TOY, Bench, Case, Sizes, tf32
from benchmarks.gpu.forecasts import forecasts, in_batches, precision
from benchmarks.gpu.training import compiled, repeated, training
from tests.golden.comparisons import compare, comparisons
from tests.tiny import arguments
from utils.files import replacing
from utils.provenance import ROOT


def device(bench: Bench) -> Iterator[Case]:
    """Describe the device and measure its peak."""
    yield "", 1, lambda: [{"case": name, "value": value} for name, value in facts(bench).items()]
    if bench.device.type == "cuda":
        yield "driver", 1, driver
    for name, dtype, on in (
        ("bfloat16", torch.bfloat16, True),
        ("TF32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        yield f"matrix product in {name}, TFLOP/s", 5, partial(peak, bench, dtype, on)


def facts(bench: Bench) -> dict:
    """Names and versions."""
    about = {"torch": torch.__version__, "CUDA, cuDNN": f"{torch.version.cuda}, {torch.backends.cudnn.version()}"}
    if bench.device.type != "cuda":
        return about
    properties = torch.cuda.get_device_properties(0)
    return about | {
        "name": properties.name,
        "GPUs": torch.cuda.device_count(),
        "GiB": properties.total_memory / 2**30,
        "compute capability": f"{properties.major}.{properties.minor}",
        "TF32": properties.major >= 8,
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
    }


def driver() -> dict:
    """The version of NVIDIA's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {"value": subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]}


def peak(bench: Bench, dtype: torch.dtype, on: bool) -> dict:
    """TFLOP/s with or without TF32."""
    with tf32(on):
        return {"value": bench.peak(dtype)}


def golden(bench: Bench) -> Iterator[Case]:
    """Compare with all outputs in tests/golden."""
    with tf32(False):
        for name, compute in comparisons(bench.device):
            yield name, 5, partial(compare, compute)


def determinism(bench: Bench) -> Iterator[Case]:
    """Check whether trainings repeat themselves, and forecasts depend on their batch."""
    yield "training", 15, partial(repeated, bench, False)
    for name in PRECISIONS:
        yield f"forecast_batch 3 against all, {name}", 5, partial(in_batches, bench, name)
    yield "training, cuDNN deterministic", 15, partial(repeated, bench, True)


def commands(bench: Bench) -> Iterator[Case]:
    """The command lines on this device: training, evaluation, forecasts."""
    data = bench.folder / "tiny"
    tiny = arguments(data, bench.folder / "tiny_runs", "--use_diff", "--num_workers", "2")
    sizes = ["--events", "12", "--size", "16", "--resolution", "16"]
    yield "synthetic storms", 5, partial(command, "-m", "dataset", "synthetic", "--out", data, *sizes)
    yield "run.py", 15, partial(command, "run.py", *tiny, "--mixed_precision", "bf16", "--members", "2")
    yield "sample_batch.py", 10, partial(command, "sample_batch.py", "--members", "2", "--out", bench.folder / "drawn")


def command(*words) -> dict:
    """Run a command of this project; raises `RuntimeError` if it fails."""
    started = time.time()
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"status {done.returncode}: {done.stderr[-2000:]}")
    return {"s": time.time() - started}


def processes(bench: Bench) -> Iterator[Case]:
    """The training loop on two GPUs."""
    if (number := torch.cuda.device_count()) < 2:
        yield "two processes", 0, lambda: {"skipped": f"this machine has {number} GPU(s)"}
        return
    yield "two processes", 30, partial(two_processes, bench)


def two_processes(bench: Bench) -> list[dict]:
    """Rows of the section `two`, run by two processes."""
    rows = bench.folder / "two.json"
    words = ["two", rows, "--folder", bench.folder, "--until", bench.until, *["--toy"] * (bench.sizes is TOY)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m"]
    command(*launcher, "benchmarks.gpu.sections", *words)
    return json.loads(rows.read_text())


SECTIONS: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "device": device,
    "golden": golden,
    "float32": partial(training, precision="no"),
    "bf16": partial(training, precision="bf16"),
    "forecasts": forecasts,
    "determinism": determinism,
    "commands": commands,
    "precision": precision,
    "compile": compiled,
    "processes": processes,
    "two": partial(training, precision="bf16"),  # by each of two processes
}


def measured(bench: Bench, name: str, compute: Callable[[], dict | list[dict]]) -> Iterator[dict]:
    """The rows of a case, with the peak of its memory."""
    cuda = bench.device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found = compute()
    except Exception as error:  # reported in row, log and exit status, so that later cases are still measured
        traceback.print_exc()
        found = {"failed": (str(error) or type(error).__name__).strip().splitlines()[-1][:100]}
    memory = {"GiB": torch.cuda.max_memory_allocated() / 2**30} if cuda else {}
    for row in found if isinstance(found, list) else [found]:
        yield {"case": name} | row | memory


def run(name: str, bench: Bench, out: Path) -> bool:
    """Measure the cases of a section and write after each; return whether none failed."""
    rows = []
    for case, seconds, compute in SECTIONS[name](bench):
        if time.time() + seconds > bench.until:
            rows.append({"case": case, "skipped": "no time left"})
        else:
            rows += measured(bench, case, compute)
        if os.environ.get("RANK", "0") == "0":
            with replacing(out) as temporary:
                temporary.write_text(json.dumps(rows, indent=1) + "\n")
    return not any("failed" in row for row in rows)


def main(argv: list[str] | None = None) -> None:
    """Run one section."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("section", choices=list(SECTIONS))
    parser.add_argument("out", type=Path, help="where its rows are written")
    parser.add_argument("--folder", type=Path, required=True, help="for data, checkpoints and other files")
    parser.add_argument("--until", type=float, required=True, help="Unix time after which no more case is started")
    parser.add_argument("--toy", action="store_true", help="small sizes")
    args = parser.parse_args(argv)
    bench = Bench(TOY if args.toy else Sizes(), args.folder, args.until)
    sys.exit(0 if run(args.section, bench, args.out) else 1)


if __name__ == "__main__":
    main()
