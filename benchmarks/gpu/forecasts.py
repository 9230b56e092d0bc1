"""Forecasts on a GPU: seconds by part, in every precision, and differences from float32."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.bench import PRECISIONS, Bench, Case, tf32
from benchmarks.speed.forecast import compare_evaluations, compare_forecasts
from benchmarks.speed.measuring import in_turn, seconds_of
from diffcast import DiffCast
from diffcast.forecaster import place
from diffcast.layers import computing_in

FORMS = {  # of precision: whether TF32 is on, the type, whether compiled
    "float32": (False, "float32", False),
    "TF32": (True, "float32", False),
    "bfloat16": (True, "bfloat16", False),
    "bfloat16, compiled": (True, "bfloat16", True),
    "float32, compiled": (False, "float32", True),
}


def forecasts(bench: Bench) -> Iterator[Case]:
    """Time forecasts, their parts, the official procedure and large batches."""
    sizes = bench.sizes
    for backbone in sizes.backbones:
        official = bench.model(backbone)
        ours = place(copy.deepcopy(official), bench.device)
        yield backbone, 15, partial(compare_forecasts, official, ours, sizes.members, sizes.rounds)
        for precision in PRECISIONS:
            for members in (1, sizes.members):
                yield f"{backbone}, dpm, {precision}", 5, partial(parts, bench, ours, members, precision)
    for members in (1, sizes.members):
        yield backbone, 5, partial(compare_evaluations, official, ours, members, sizes.rounds)
    for at_once in (1, sizes.members, 4 * sizes.members, sizes.sequences * sizes.members):
        yield f"bfloat16, forecast_batch {at_once}", 15, partial(throughput, bench, ours, at_once)


@torch.no_grad()
def parts(bench: Bench, model: DiffCast, members: int, precision: str) -> dict:
    """Seconds of a forecast with the default sampler, and of its parts."""
    sizes, frames, noise = bench.sizes, bench.frames(1), start_noise(bench, model, members)[0, :, 0]
    mu = frames.new_zeros(1, model.frames_out, *model.frame_shape)
    segment, now = torch.tensor([0], device=bench.device), torch.full((members,), 500, device=bench.device)
    context = partial(model._context, frames, mu)
    with computing_in(PRECISIONS[precision], frames):
        denoise = model.residual.conditioned(noise, context()[0], segment)
        seconds = in_turn({"GlobalMotion": context, "evaluation": lambda: denoise(noise, now)}, sizes.rounds)
    complete = partial(forecast, bench, model, frames, members, precision)
    seconds |= in_turn({"backbone": lambda: model.backbone.trend(frames), "complete": complete}, sizes.rounds)
    number = sizes.sampling_steps * model.segments
    return {
        "members": members,
        "s": seconds["complete"]["median"],
        "backbone": seconds["backbone"]["median"],
        "GlobalMotion": seconds["GlobalMotion"]["median"],
        f"{number} evaluations": number * seconds["evaluation"]["median"],
    }


def throughput(bench: Bench, model: DiffCast, at_once: int) -> dict:
    """Forecasts per second, `at_once` at a time.

    One at a time, they are of a single sequence.
    """
    members = bench.sizes.members
    sequences = 1 if at_once == 1 else bench.sizes.sequences
    call = partial(forecast, bench, model, bench.frames(sequences), members, "bfloat16", forecast_batch=at_once)
    taken = in_turn({"": call}, 1)[""]["median"]
    return {"members": members, "s": taken, "forecasts/s": sequences * members / taken}


def precision(bench: Bench) -> Iterator[Case]:
    """Compare an evaluation of LocalResidual, and a forecast, with those in float32."""
    model, frames = place(bench.model("simvp"), bench.device), bench.frames(1)
    noise = start_noise(bench, model, 1)
    with tf32(False):
        exact = drawn(bench, model, frames, noise, "float32", False)
    for name, (on, kind, compiled) in FORMS.items():
        form = partial(drawn, bench, model, frames, noise, kind, compiled)
        yield name, 40 if compiled else 5, partial(differences, bench, exact, form, on)
        if compiled:
            many = partial(forecast, bench, model, frames, bench.sizes.members, kind, compiled=True)
            yield f"{name}, {bench.sizes.members} members", 30, partial(first_and_later, bench, many, on)


def drawn(bench: Bench, model: DiffCast, frames: Tensor, noise: Tensor, kind: str, compiled: bool) -> list[Tensor]:
    """One evaluation of LocalResidual, and the residual of a forecast."""
    x, zero = noise[:, 0, 0], torch.tensor([0], device=bench.device)
    with torch.no_grad(), computing_in(PRECISIONS[kind], frames):
        context, _ = model._context(frames, frames.new_zeros(1, model.frames_out, *model.frame_shape))
        denoise = model.residual.conditioned(torch.zeros_like(x), context, zero)
        v = (torch.compile(denoise) if compiled else denoise)(x, zero + 500)
    return [v, forecast(bench, model, frames, 1, kind, noise=noise, compiled=compiled)]


def differences(bench: Bench, exact: list[Tensor], form: Callable[[], list[Tensor]], on: bool) -> dict:
    """Relative RMS differences of an evaluation and a forecast, and their seconds."""
    made = []
    seconds = first_and_later(bench, lambda: made.extend(form()), on)
    evaluation, complete = (((a - b).norm() / b.norm()).item() for a, b in zip(made[:2], exact, strict=True))
    return {"evaluation": evaluation, "forecast": complete} | seconds


def first_and_later(bench: Bench, form: Callable[[], object], on: bool) -> dict:
    """Seconds of the first call and of later ones."""
    with tf32(on):
        return {"first s": seconds_of(form), "s": in_turn({"": form}, bench.sizes.rounds)[""]["median"]}


def start_noise(bench: Bench, model: DiffCast, members: int) -> Tensor:
    """Start noise `(1, M, S, L, C, H, W)`."""
    return torch.randn(1, members, model.segments, model.segment_length, *model.frame_shape, device=bench.device)


def forecast(bench: Bench, model: DiffCast, frames: Tensor, members: int, precision: str, **more) -> Tensor:
    """A residual by the default sampler."""
    options = {"sampler": "dpm", "sampling_steps": bench.sizes.sampling_steps, "precision": PRECISIONS[precision]}
    return model.generate(frames, members, **options, **more).residual


def in_batches(bench: Bench, precision: str) -> dict:
    """Largest difference of forecasts from those in other batches, by a stochastic sampler."""
    model, size = place(bench.model("simvp"), bench.device), bench.sizes.img_size
    frames = torch.linspace(0, 1, 2 * 5 * size**2, device=bench.device).view(2, 5, 1, size, size)
    made = []
    for at_once in (None, 3):
        draws = [torch.Generator(bench.device).manual_seed(seed) for seed in range(2)]
        options = {"sampler": "sde-dpm", "sampling_steps": bench.sizes.sampling_steps, "forecast_batch": at_once}
        made.append(model.forecast(frames, 4, draws, precision=PRECISIONS[precision], **options))
    return {"forecasts": (made[0] - made[1]).abs().max().item()}
