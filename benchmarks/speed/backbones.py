"""Parameters, operations and seconds per forecast of every backbone, 5 -> 20 frames.

    python -m benchmarks.speed.backbones [--img_size 128] [--rounds 3] [--json result.json]

DiffCast's forecast is timed with 1 and with 6 denoising steps, and extrapolated. Weights are fresh, and the shortest of
the rounds counts.
"""

from functools import partial

import torch

from benchmarks.speed.measuring import arguments, in_turn, table, write_numbers
from diffcast.commandline.summary import forecast_flops
from diffcast.forecaster import Architecture, place
from diffcast.forecasting.forecasts import ForecastSettings
from diffcast.model import DiffCast
from models import BACKBONES

STEPS = 250


def seconds(model: torch.nn.Module, rounds: int, **sampling) -> float:
    """Shortest time of a forecast of one sequence."""
    frames = torch.rand(1, model.frames_in, *model.frame_shape)
    return in_turn({"": partial(model.forecast, frames, **sampling)}, rounds)[""]["shortest"]


def measure(backbone: str, use_diff: bool, img_size: int, rounds: int) -> dict:
    """Measure one forecaster."""
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
        "GFLOPs/forecast": forecast_flops(model, ForecastSettings(sampling_steps=STEPS)) / 1e9,
        "s/forecast": took,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the numbers."""
    parser = arguments(__doc__)
    parser.add_argument("--img_size", type=int, default=128, help="pixels of a frame's side")
    parser.add_argument("--rounds", type=int, default=3, help="timed forecasts of each")
    args = parser.parse_args(argv)
    rows = [measure(name, False, args.img_size, args.rounds) for name in BACKBONES if name != "persistence"]
    rows.append(measure("simvp", True, args.img_size, args.rounds))
    print(f"5 -> 20 frames, {args.img_size} x {args.img_size}, {torch.get_num_threads()} thread(s), DDIM {STEPS} steps")
    print(table(rows))
    write_numbers(args, rows=rows)


if __name__ == "__main__":
    main()
