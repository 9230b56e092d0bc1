"""The sections of `benchmarks.gpu`, each in a process of its own; that module starts them."""

import argparse
import copy
import gc
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.forecast import (
    compare_evaluations,
    compare_forecasts,
    default_device,
    in_turn,
    seconds_of,
)
from benchmarks.gpu_golden import compare, comparisons
from benchmarks.gpu_training import repeated, trained
from diffcast import DiffCast
from diffcast.forecaster import Architecture, place
from diffcast.arguments import parse_options
from diffcast.layers import computing_in
from tests.tiny import BACKBONES, arguments
from utils.files import replacing
from utils.provenance import ROOT

Case = tuple[str, float, Callable[[], dict | list[dict]]]  # name, seconds that it may take, what measures it
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Sizes:
    """How large everything is; the published sizes."""

    img_size: int = 128
    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    batch: int = 6
    steps: int = 10  # between readings of a training's losses
    workers: int = 4
    members: int = 8
    sequences: int = 16  # of a large batch of forecasts
    sampling_steps: int = 10
    rounds: int = 3
    matrix: int = 8192

    @property
    def backbones(self) -> dict[str, list[str]]:
        """Their options."""
        return {"simvp": [], "phydnet": []}


class ToySizes(Sizes):
    """Sizes for a processor."""

    def __init__(self):
        super().__init__(16, 8, (1, 2), 2, 2, 0, 2, 2, 2, 1, 64)

    @property
    def backbones(self) -> dict[str, list[str]]:
        return {name: [f"{key}={value}" for key, value in BACKBONES[name].items()] for name in ("simvp", "phydnet")}


class Bench:
    """What all sections need."""

    def __init__(self, sizes: Sizes, folder: Path, until: float):
        self.sizes = sizes
        self.folder = folder
        self.until = until
        self.device = default_device()

    def peak(self, dtype: torch.dtype) -> float:
        """TFLOP/s of a large matrix product."""
        a, b = torch.randn(2, self.sizes.matrix, self.sizes.matrix, device=self.device, dtype=dtype)
        return 2 * self.sizes.matrix**3 / in_turn({"": lambda: a @ b}, 10)[""]["median"] / 1e12

    def model(self, backbone: str) -> DiffCast:
        """A forecaster with random weights, as it is built."""
        torch.manual_seed(0)
        sizes = self.sizes
        architecture = Architecture(
            backbone,
            True,
            (1, sizes.img_size, sizes.img_size),
            backbone_options=parse_options(sizes.backbones[backbone]),
            dim=sizes.dim,
            dim_mults=sizes.dim_mults,
        )
        return architecture.build().to(self.device).eval()

    def frames(self, sequences: int) -> Tensor:
        """Observed frames."""
        return torch.rand(sequences, 5, 1, self.sizes.img_size, self.sizes.img_size, device=self.device)


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether float32 multiplies in TF32, here."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def device(bench: Bench) -> Iterator[Case]:
    """What it is, and what it can at most."""
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        yield "name", 1, lambda: {"value": properties.name}
        yield "GiB", 1, lambda: {"value": properties.total_memory / 2**30}
        yield "GPUs", 1, lambda: {"value": torch.cuda.device_count()}
        yield "capability", 1, lambda: {"value": f"{properties.major}.{properties.minor}"}
        yield "bfloat16", 1, lambda: {"value": torch.cuda.is_bf16_supported(including_emulation=False)}
        yield "TF32", 1, lambda: {"value": properties.major >= 8}
        yield "driver", 1, lambda: {"value": shell("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")}
    yield "torch", 1, lambda: {"value": torch.__version__}
    yield "CUDA, cuDNN", 1, lambda: {"value": f"{torch.version.cuda}, {torch.backends.cudnn.version()}"}
    for name, dtype, on in (
        ("bfloat16", torch.bfloat16, True),
        ("TF32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        with tf32(on):
            value = bench.peak(dtype)
        yield f"{name}, TFLOP/s", 5, lambda value=value: {"value": value}


def shell(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def golden(bench: Bench) -> Iterator[Case]:
    """All comparisons of tests/golden."""
    with tf32(False):
        for name, compute in comparisons(bench.device):
            yield name, 5, partial(compare, compute)


def training(bench: Bench, precision: str) -> Iterator[Case]:
    """Steps of both forecasters, with and without gradient checkpointing."""
    for more in ([], ["--gradient_checkpointing"]):
        for backbone in bench.sizes.backbones:
            name = ", ".join([backbone, *(word.strip("-") for word in more)])
            yield name, 12, lambda backbone=backbone, more=more: trained(
                bench, backbone, "--mixed_precision", precision, *more, until=time.time() + 12
            )


def compiled_training(bench: Bench) -> Iterator[Case]:
    """Steps with torch.compile, whose first ones take long."""
    for backbone in bench.sizes.backbones:
        yield backbone, 30, lambda backbone=backbone: trained(
            bench, backbone, "--mixed_precision", "bf16", "--compile", until=bench.until
        )


def forecasts(bench: Bench) -> Iterator[Case]:
    """Seconds of forecasts, of their parts and of the official procedure; throughput of large batches."""
    sizes = bench.sizes
    for backbone in sizes.backbones:
        official = bench.model(backbone)
        ours = place(copy.deepcopy(official), bench.device)
        name = f"{backbone}: "
        yield name, 15, lambda: [
            {"case": f"{name}{row['form']}, {row['sampler']} {row['steps']}, {row['precision']}"}
            | {"members": row["members"], "s": row["median"], "times faster": row["speedup"]}
            | ({"note": "extrapolated"} if row["extrapolated"] else {})
            for row in compare_forecasts(official, ours, sizes.members, sizes.rounds, full=False)
        ]
        for precision in PRECISIONS:
            for members in (1, sizes.members):
                yield f"{name}parts, {precision}", 5, partial(parts, bench, ours, members, precision)
    for members in (1, sizes.members):
        yield "", 5, lambda members=members: [
            {"case": f"simvp: evaluation, {row['form']}", "members": members, "s": row["median"]}
            | {"times faster": row["speedup"], "difference": row["difference"]}
            for row in compare_evaluations(official, ours, members, sizes.rounds)
        ]
    for at_once in (1, sizes.members, 4 * sizes.members, sizes.sequences * sizes.members):
        yield f"throughput, bfloat16, forecast_batch {at_once}", 15, partial(throughput, bench, ours, at_once)


def parts(bench: Bench, model: DiffCast, members: int, precision: str) -> dict:
    """Seconds of each part of a forecast with the default sampler."""
    frames = bench.frames(1)
    mu = torch.rand(1, model.frames_out, *model.frame_shape, device=bench.device)
    noise = torch.randn(members, model.segment_length, *model.frame_shape, device=bench.device)
    segment, now = torch.zeros(1, dtype=torch.long, device=bench.device), torch.full((members,), 500).to(bench.device)
    with torch.no_grad(), computing_in(PRECISIONS[precision], frames):
        context, _ = model._context(frames, mu)
        denoise = model.residual.conditioned(noise, context, segment)
        forms = {
            "GlobalMotion": lambda: model._context(frames, mu),
            "evaluation": lambda: denoise(noise, now),
        }
        seconds = in_turn(forms, bench.sizes.rounds)
    with torch.no_grad():
        seconds |= in_turn({"backbone": lambda: model.backbone.trend(frames)}, bench.sizes.rounds)
    evaluations = bench.sizes.sampling_steps * model.segments
    taken = {name: one["median"] for name, one in seconds.items()}
    whole = partial(forecast, bench, model, frames, members, precision)
    return {
        "members": members,
        "s": in_turn({"": whole}, bench.sizes.rounds)[""]["median"],
        "backbone": taken["backbone"],
        "GlobalMotion": taken["GlobalMotion"],
        f"LocalResidual x {evaluations}": evaluations * taken["evaluation"],
    }


def forecast(bench: Bench, model: DiffCast, frames: Tensor, members: int, precision: str, **more) -> Tensor:
    """A residual by the default sampler."""
    options = {"sampler": "dpm", "sampling_steps": bench.sizes.sampling_steps, "precision": PRECISIONS[precision]}
    return model.generate(frames, members, **options, **more).residual


def throughput(bench: Bench, model: DiffCast, at_once: int) -> dict:
    """Forecasts per second of many sequences, so many at a time."""
    members = bench.sizes.members
    # A forecast at a time takes as long as it takes: a few show it.
    sequences = 1 if at_once == 1 else max(bench.sizes.sequences, at_once // members)
    call = partial(forecast, bench, model, bench.frames(sequences), members, "bfloat16", forecast_batch=at_once)
    taken = in_turn({"": call}, 1)[""]["median"]
    return {"members": members, "s": taken, "forecasts/s": sequences * members / taken}


def determinism(bench: Bench) -> Iterator[Case]:
    """Whether trainings repeat themselves, and forecasts depend on what is computed beside them."""
    yield "training, cuDNN's default", 15, partial(repeated, bench, False)
    yield "training, cuDNN deterministic", 15, partial(repeated, bench, True)
    model = place(bench.model("simvp"), bench.device)
    for precision in PRECISIONS:
        yield f"forecast_batch 3 against all, {precision}", 5, partial(in_batches, bench, model, precision)


def in_batches(bench: Bench, model: DiffCast, precision: str) -> dict:
    """How far forecasts are from those that are made in other batches."""
    made = []
    for at_once in (None, 3):
        draws = [torch.Generator(bench.device).manual_seed(seed) for seed in range(2)]
        options = {"sampler": "sde-dpm", "sampling_steps": bench.sizes.sampling_steps, "forecast_batch": at_once}
        frames = torch.linspace(0, 1, 2 * 5 * bench.sizes.img_size**2, device=bench.device)
        frames = frames.view(2, 5, 1, bench.sizes.img_size, bench.sizes.img_size)
        made.append(model.generate(frames, 4, draws, precision=PRECISIONS[precision], **options).forecast)
    return {"forecasts": (made[0] - made[1]).abs().max().item()}


def commands(bench: Bench) -> Iterator[Case]:
    """The command lines, training, evaluation and forecasts, on this device."""
    tiny = arguments(bench.folder / "tiny", bench.folder / "tiny_runs", "--use_diff", "--num_workers", "2")
    sevir = ["-m", "dataset.synthetic", "--out", tiny[tiny.index("--data_path") + 1], "--events", "12"]
    yield "synthetic", 10, partial(command, *sevir, "--size", "16", "--resolution", "16")
    yield "run.py", 20, partial(command, "run.py", *tiny, "--mixed_precision", "bf16", "--members", "2")
    yield "sample_batch.py", 20, partial(command, "sample_batch.py", "--members", "2", "--out", bench.folder / "drawn")


def command(*words) -> dict:
    """Run a command of this project."""
    started = time.time()
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"status {done.returncode}: {done.stderr[-1000:]}")
    return {"s": time.time() - started}


def precision(bench: Bench) -> Iterator[Case]:
    """Relative RMS difference of an evaluation of LocalResidual, and of whole forecasts from the same noise."""
    model, frames = place(bench.model("simvp"), bench.device), bench.frames(1)
    noise = torch.randn(1, 1, model.segments, model.segment_length, *model.frame_shape, device=bench.device)
    with tf32(False):
        exact = drawn(bench, model, frames, noise, "float32", False)
    for name, on, kind, compiled in (
        ("float32", False, "float32", False),
        ("TF32", True, "float32", False),
        ("bfloat16", True, "bfloat16", False),
        ("bfloat16, compiled", True, "bfloat16", True),
        ("float32, compiled", False, "float32", True),
    ):
        yield name, 30 if compiled else 3, lambda on=on, kind=kind, compiled=compiled: against(
            bench, exact, partial(drawn, bench, model, frames, noise, kind, compiled), on
        )
    members = bench.sizes.members
    many = partial(forecast, bench, model, frames, members, "bfloat16", compiled=True)
    yield f"bfloat16, compiled, {members} members", 30, lambda: {
        "first s": seconds_of(many),
        "s": in_turn({"": many}, bench.sizes.rounds)[""]["median"],
    }


def drawn(bench: Bench, model: DiffCast, frames: Tensor, noise: Tensor, kind: str, compiled: bool) -> list[Tensor]:
    """One evaluation of LocalResidual, and the residual of a forecast."""
    x, dtype = noise[:, 0, 0], PRECISIONS[kind]
    with torch.no_grad(), computing_in(dtype, frames):
        context, _ = model._context(frames, frames.new_zeros(1, model.frames_out, *model.frame_shape))
        zero = torch.zeros(1, dtype=torch.long, device=bench.device)
        v = model.residual.conditioned(torch.zeros_like(x), context, zero)(x, zero + 500)
    return [v, forecast(bench, model, frames, 1, kind, noise=noise, compiled=compiled)]


def against(bench: Bench, exact: list[Tensor], form: Callable[[], list[Tensor]], on: bool) -> dict:
    """Differences, and seconds of the first call and of the later ones."""
    made = []
    with tf32(on):
        first = seconds_of(lambda: made.extend(form()))
        later = in_turn({"": form}, bench.sizes.rounds)[""]["median"]
    names = ("evaluation", "forecast")
    differences = [((a - b).norm() / b.norm()).item() for a, b in zip(made, exact, strict=True)]
    return dict(zip(names, differences, strict=True)) | {"first s": first, "s": later}


def processes(bench: Bench) -> Iterator[Case]:
    """The training loop on two GPUs."""
    if torch.cuda.device_count() < 2:
        yield "two GPUs", 0, lambda: {"skipped": f"this machine has {torch.cuda.device_count()} GPU(s)"}
        return
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "benchmarks.gpu_sections"]
    rows = bench.folder / "two.json"
    words = ["two", rows, "--folder", bench.folder, "--until", bench.until, *["--toy"] * isinstance(bench.sizes, ToySizes)]
    yield "two GPUs", 30, lambda: command(*launch, *words) and json.loads(rows.read_text())


SECTIONS: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "device": device,
    "golden": golden,
    "float32": partial(training, precision="no"),
    "bf16": partial(training, precision="bf16"),
    "compile": compiled_training,
    "forecasts": forecasts,
    "determinism": determinism,
    "commands": commands,
    "precision": precision,
    "processes": processes,
    "two": partial(training, precision="bf16"),  # in each of two processes
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
    except Exception as error:  # told in the row and in the exit status; the cases after it are measured nevertheless
        traceback.print_exc()
        found = {"failed": (str(error) or type(error).__name__).splitlines()[0][:100]}
    memory = {"GiB": torch.cuda.max_memory_allocated() / 2**30} if cuda else {}
    for row in found if isinstance(found, list) else [found]:
        yield {"case": name} | row | memory


def run(name: str, bench: Bench, out: Path | None) -> bool:
    """Measure the cases of a section, writing after each; whether none failed."""
    rows = []
    for case, seconds, compute in SECTIONS[name](bench):
        if time.time() + seconds > bench.until:
            rows.append({"case": case, "skipped": "no time left"})
        else:
            rows += measured(bench, case, compute)
        if out is not None:
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
    bench = Bench(ToySizes() if args.toy else Sizes(), args.folder, args.until)
    sys.exit(0 if run(args.section, bench, args.out) else 1)


if __name__ == "__main__":
    main()
