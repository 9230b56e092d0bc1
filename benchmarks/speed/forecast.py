"""Seconds of network evaluations and forecasts, against the official procedure.

    python -m benchmarks.speed.forecast [--rounds 5] [--members 8] [--full] [--json result.json]

The official procedure is 250 steps of DDIM for each segment in float32, contiguous, one sequence and one member at a
time, everything computed anew at every evaluation, with the operations that the architecture is described by. It takes
many minutes. Without --full, three of its steps are timed and the time is extrapolated, as the table then says. All
forms are timed in turn, round by round.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from benchmarks.speed.measuring import Form, arguments, default_device, in_turn, seconds_of, table, write_numbers
from diffcast import DiffCast
from diffcast.forecaster import Architecture, device_of, place
from diffcast.layers import LargeKernelAttention, ResidualBlock, Upsample, sinusoidal
from diffcast.residual import LocalResidual
from diffcast.samplers import ddim
from models import BACKBONES

OFFICIAL_STEPS = 250
EXTRAPOLATED_FROM = 3  # steps per segment
PRECISIONS = ("float32", "bfloat16")
DEFAULT = ("dpm", 10, "bfloat16")
SETTINGS = [DEFAULT, ("dpm", 10, "float32"), ("sde-dpm", 10, "bfloat16"), ("ddim", 20, "bfloat16")]
ENSEMBLES = [DEFAULT, ("ddim", 1, "float32"), ("ddim", 1, "bfloat16")]  # of several members, the last two by a CRPS


def direct(
    network: LocalResidual, noisy: Tensor, time: Tensor, condition: Tensor, context: list[Tensor], segment: Tensor
) -> Tensor:
    """Evaluate LocalResidual one operation after the other, as the paper describes it."""
    embedding = torch.cat(
        [
            network.embed_time(sinusoidal(time, network.dim)),
            network.embed_segment(sinusoidal(segment, network.dim)),
        ],
        dim=1,
    )
    x = stem = network.stem(rearrange([condition, noisy], "two b l c h w -> b (two l c) h w"))
    skips = []
    for level, maps in zip(network.downs, context, strict=True):
        skips.append(direct_block(level.block1, torch.cat([x, maps], dim=1), embedding))
        skips.append(direct_attention(level.attention, direct_block(level.block2, skips[-1], embedding)))
        last = level is network.downs[-1]
        x = level.resample(skips[-1]) if last else level.resample.conv(F.pixel_unshuffle(skips[-1], 2))
    x = direct_block(network.middle_block1, x, embedding)
    x = direct_block(network.middle_block2, network.middle_attention(x), embedding)
    for level in network.ups:
        x = direct_block(level.block1, torch.cat([x, skips.pop()], dim=1), embedding)
        x = direct_attention(level.attention, direct_block(level.block2, torch.cat([x, skips.pop()], dim=1), embedding))
        up = isinstance(level.resample, Upsample)
        x = level.resample.conv(F.interpolate(x, scale_factor=2)) if up else level.resample(x)
    x = network.head(direct_block(network.head_block, torch.cat([x, stem], dim=1), embedding))
    return rearrange(x, "b (l c) h w -> b l c h w", c=noisy.shape[2])


def direct_block(block: ResidualBlock, x: Tensor, embedding: Tensor) -> Tensor:
    """A residual block whose modulation is computed on the spot."""
    scale, shift = block.modulation(F.silu(embedding))[..., None, None].chunk(2, dim=1)
    h = F.silu(block.norm1(block.conv1(x)) * (scale + 1) + shift)
    return F.silu(block.norm2(block.conv2(h))) + block.shortcut(x)


def direct_attention(attention: LargeKernelAttention, x: Tensor) -> Tensor:
    """Large-kernel attention with the library's dilated convolution."""
    normed = F.normalize(x, dim=1) * attention.norm.gain * x.shape[1] ** 0.5
    u = F.gelu(attention.project_in(normed))
    spatial = attention.pointwise(attention.dilated(attention.local(u)))
    channel = torch.sigmoid(attention.excite(F.relu(attention.squeeze(u.mean(dim=(2, 3))))))
    return x + normed + attention.project_out(channel[..., None, None] * spatial * u)


def in_precision(precision: str, form: Form, device: torch.device) -> Form:
    """Compute a form in float32 or under autocast."""

    def run() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return form()

    return run


def evaluation_forms(official: DiffCast, ours: DiffCast, members: int) -> dict[str, Form]:
    """Evaluations of LocalResidual for members of a sequence, official and ours."""
    device = device_of(ours)
    noisy, condition = torch.randn(2, members, ours.segment_length, *ours.frame_shape, device=device)
    now, segment = torch.full((members,), 500, device=device), torch.tensor([1], device=device)
    frames = 2 * torch.rand(1, ours.frames_in + ours.frames_out, *ours.frame_shape, device=device) - 1
    _, context = official.motion(frames, ours.frames_in)
    repeated = [x.expand(members, -1, -1, -1).contiguous() for x in context]
    forms = {
        "official": lambda: direct(official.residual, noisy, now, condition, repeated, segment.expand(members)),
    }
    context = [x.to(memory_format=torch.channels_last) for x in context]
    for precision in PRECISIONS:
        denoise = in_precision(precision, lambda: ours.residual.conditioned(condition, context, segment), device)()
        forms[precision] = in_precision(precision, lambda denoise=denoise: denoise(noisy, now), device)
    return forms


@torch.no_grad()
def compare_evaluations(official: DiffCast, ours: DiffCast, members: int, rounds: int) -> list[dict]:
    """Time each form of an evaluation, and compare it with the official form (relative RMS)."""
    forms = evaluation_forms(official, ours, members)
    # Around all calls, as around a forecast: leaving the outermost autocast forgets the converted weights.
    with torch.autocast(device_of(ours).type, enabled=False):
        expected = forms["official"]()
        differences = {name: (form() - expected).norm() / expected.norm() for name, form in forms.items()}
        seconds = in_turn(forms, rounds)
    return [
        {
            "form": f"evaluation, {name}",
            "members": members,
            **_seconds(seconds[name]),
            "times faster": seconds["official"]["median"] / seconds[name]["median"],
            "difference": differences[name].item(),
        }
        for name in forms
    ]


def official_forecast(official: DiffCast, frames: Tensor, steps: int) -> Tensor:
    """Draw a residual `(1, T, C, H, W)` by the official procedure."""
    mu = 2 * official.backbone.trend(frames) - 1
    local, last = official.motion(torch.cat([2 * frames - 1, mu], dim=1), official.frames_in)
    segments = [frames.new_zeros(1, official.segment_length, *official.frame_shape)]
    for s in range(official.segments):
        index = torch.tensor([s], device=frames.device)
        given = {"condition": segments[-1], "context": last if s else local, "segment": index}
        denoise = partial(direct, official.residual, **given)
        segments.append(ddim(denoise, torch.randn_like(segments[-1]), official.schedule, steps))
    return torch.cat(segments[1:], dim=1)


def time_official(official: DiffCast, frames: Tensor, forms: dict[str, Form], rounds: int, full: bool) -> dict:
    """Time forms in turn with the official procedure, which is extrapolated unless `full`."""
    short = {steps: partial(official_forecast, official, frames, steps) for steps in (1, EXTRAPOLATED_FROM)}
    seconds = in_turn(short | forms, rounds)
    one, few = (seconds.pop(steps) for steps in short)
    per_step = {kind: (few[kind] - one[kind]) / (EXTRAPOLATED_FROM - 1) for kind in one}
    seconds["official"] = {kind: one[kind] + (OFFICIAL_STEPS - 1) * per_step[kind] for kind in one}
    if full:
        taken = seconds_of(partial(official_forecast, official, frames, OFFICIAL_STEPS))
        seconds["official"] = dict.fromkeys(one, taken)
    return seconds


@torch.no_grad()
def compare_forecasts(official: DiffCast, ours: DiffCast, members: int, rounds: int, full: bool = False) -> list[dict]:
    """Seconds of forecasts of one sequence, by setting, against the official procedure."""
    frames = torch.rand(1, ours.frames_in, *ours.frame_shape, device=device_of(ours))
    settings = [(*setting, 1) for setting in SETTINGS + ENSEMBLES[1:]] + [(*setting, members) for setting in ENSEMBLES]
    forms = {}
    for setting in settings:
        sampler, steps, precision, number = setting
        options = {"members": number, "sampler": sampler, "sampling_steps": steps}
        forms[setting] = partial(ours.forecast, frames, precision=getattr(torch, precision), **options)
    seconds = time_official(official, frames, forms, rounds, full)
    reference = ("ddim", OFFICIAL_STEPS, "float32", 1)
    official_seconds = seconds.pop("official")
    rows = []
    for (sampler, steps, precision, count), taken in {reference: official_seconds, **seconds}.items():
        row = {
            "form": f"{sampler} {steps}, {precision}",
            "members": count,
            **_seconds(taken),
            "evaluations": steps * ours.segments,
            "s/member": taken["median"] / count,
            "times faster": official_seconds["median"] * count / taken["median"],
        }
        rows.append(row)
    rows[0]["form"] = f"official: {rows[0]['form']}" + ", extrapolated" * (not full)
    return rows


@torch.no_grad()
def time_parts(ours: DiffCast, members: int, rounds: int) -> list[dict]:
    """Seconds of the parts of a forecast whose members take one evaluation per segment, by precision."""
    device = device_of(ours)
    frames = 2 * torch.rand(1, ours.frames_in + ours.frames_out, *ours.frame_shape, device=device) - 1
    noisy = torch.randn(members, ours.segment_length, *ours.frame_shape, device=device)
    time, segment = torch.full((members,), 999, device=device), torch.tensor([1], device=device)
    _, context = ours.motion(frames, ours.frames_in)
    parts = {
        "backbone": lambda: ours.backbone.trend(frames[:, : ours.frames_in]),
        "GlobalMotion": lambda: ours.motion(frames, ours.frames_in),
        f"LocalResidual, a segment of {members}": lambda: ours.residual(noisy, time, noisy, context, segment),
    }
    times = {"backbone": 1, "GlobalMotion": 1}
    forms = {
        (part, precision): in_precision(precision, form, device)
        for part, form in parts.items()
        for precision in (PRECISIONS if part != "backbone" else PRECISIONS[:1])
    }
    seconds = in_turn(forms, rounds)
    return [
        {"part": part, "precision": precision, **_seconds(taken), "times": times.get(part, ours.segments)}
        for (part, precision), taken in seconds.items()
    ]


def _seconds(taken: dict[str, float]) -> dict[str, float]:
    return {"s": taken["median"], "shortest s": taken["shortest"]}


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables, write the numbers."""
    parser = arguments(__doc__)
    parser.add_argument("--backbone", default="phydnet", choices=list(BACKBONES), help="inside of DiffCast")
    parser.add_argument("--img_size", type=int, default=128, help="pixels of a frame's side")
    parser.add_argument("--members", type=int, default=8, help="size of the ensemble")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each form")
    parser.add_argument("--full", action="store_true", help="run the complete official procedure once")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    official = Architecture(args.backbone, True, (1, args.img_size, args.img_size)).build().to(default_device()).eval()
    ours = place(copy.deepcopy(official), default_device())
    size = f"{args.img_size} x {args.img_size}"
    print(f"DiffCast + {args.backbone}, 5 -> 20 frames, {size}, {torch.get_num_threads()} thread(s)\n")
    evaluations = [
        row for members in (1, args.members) for row in compare_evaluations(official, ours, members, args.rounds)
    ]
    print("One evaluation of LocalResidual; the official one is float32, contiguous, nothing computed ahead")
    print(table(evaluations))
    forecasts = compare_forecasts(official, ours, args.members, args.rounds, args.full)
    print("\nForecasts of one sequence; times faster: per member")
    print(table(forecasts))
    parts = time_parts(ours, args.members, args.rounds)
    print("\nParts of a forecast with one evaluation per segment")
    print(table(parts))
    write_numbers(args, evaluations=evaluations, forecasts=forecasts, parts=parts)


if __name__ == "__main__":
    main()
