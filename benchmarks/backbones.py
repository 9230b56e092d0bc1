"""Parameters, operations and seconds per forecast of every backbone, alone and in DiffCast, 5 -> 20 frames.

    python -m benchmarks.backbones [--img_size 128] [--rounds 3] [--json result.json]

DiffCast's forecast is timed with 1 and with 6 denoising steps, and scaled up. Fresh weights; the shortest of the rounds
counts.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from diffcast.commandline.summary import forecast_flops
from diffcast.evaluation.loop import EvaluationSettings
from diffcast.forecaster import Architecture, place
from diffcast.model import DiffCast
from models import BACKBONES
from utils.files import replacing
from utils.log import format_table

STEPS = 250


def seconds(model: torch.nn.Module, rounds: int, **sampling) -> float:
    """Shortest time of a forecast of one sequence."""
    frames = torch.rand(1, model.frames_in, *model.frame_shape)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        model.forecast(frames, **sampling)
        times.append(time.perf_counter() - started)
    return min(times)


def measure(backbone: str, use_diff: bool, img_size: int, rounds: int) -> dict:
    """The row of one forecaster."""
    model = Architecture(backbone, use_diff, (1, img_size, img_size)).build().eval()
    place(model, torch.device("cpu"))
    if isinstance(model, DiffCast):
        one, six = (seconds(model, rounds, sampling_steps=steps) for steps in (1, 6))
        took = one + (STEPS - 1) * (six - one) / 5
    else:
        took = seconds(model, rounds)
    return {
        "forecaster": f"DiffCast + {backbone}" if use_diff else backbone,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflops": forecast_flops(model, EvaluationSettings(sampling_steps=STEPS)) / 1e9,
        "seconds": took,
    }


def main() -> None:
    """Measure, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--img_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    rows = [measure(name, False, args.img_size, args.rounds) for name in BACKBONES if name != "persistence"]
    rows.append(measure("simvp", True, args.img_size, args.rounds))
    print(f"5 -> 20 frames, {args.img_size} x {args.img_size}, {torch.get_num_threads()} thread(s), DDIM {STEPS} steps")
    header = ["", "parameters", "GFLOPs / forecast", "s / forecast"]
    cells = [[r["forecaster"], f"{r['parameters']:,}", f"{r['gflops']:,.0f}", f"{r['seconds']:,.2f}"] for r in rows]
    print(format_table(header, cells))
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
