"""Forecast a few sequences, or the newest radar frames, and draw them.

    python sample_batch.py                                        the demo sequences, with the weights that ship
    python sample_batch.py --members 8 --sampler ddim --sampling_steps 250
    python sample_batch.py --seqs my_frames --ckpt_milestone Exps/.../checkpoints/best.safetensors
    python sample_batch.py --latest /radar --ckpt_milestone Exps/.../checkpoints/best.safetensors --members 20 --watch

--seqs is a sequence or a folder of sequences. A sequence is a folder with inputs/ (at least as many frames as the model
observes) and, if the future is known, targets/. Frames are square grey 8-bit PNG files in the order of their names.
A picture and an animation of each sequence appear in --out. If there are targets, the scores are printed.

--latest is a folder of frames whose names hold their times, with a frames.yaml (see resources/frames_example.yaml). The
forecast from the newest frames appears in --out as forecast_<time of the newest frame>.nc and as pictures.
docs/operational.md describes both.
"""

import argparse
import logging
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from dataset.demo_sequences import Sequence, read_sequences
from dataset.frames.complete import complete_config
from dataset.source import VIL, Source, synthetic
from diffcast.evaluation.results import score_table
from diffcast.forecaster import Architecture, describe, device_of, load_forecaster, place
from diffcast.forecasting.forecasts import ForecastSettings, check_members, forecast_all
from diffcast.forecasting.operational import Operation
from diffcast.forecasting.output import FORMATS
from diffcast.forecasting.pictures import draw_case
from diffcast.forecasting.steps import check_source
from diffcast.forecasting.watching import watch
from diffcast.loading import generators
from utils.checkpoint import find_weights
from utils.claims import own_folder
from utils.errors import InputError, exit_on_input_error
from utils.files import writable_folder
from utils.log import start_logging
from utils.metrics import Scores
from utils.options import add_options, build
from utils.provenance import sha256

LOG = logging.getLogger("sample_batch")
RESOURCES = Path(__file__).resolve().parent / "resources"
DEMO = RESOURCES / "demo_sequences"


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument("--seqs", type=Path, default=DEMO, help="folder of sequences, or one (default: the demo's)")
    frames.add_argument("--latest", type=Path, help="folder of frames with times in their names")
    parser.add_argument(
        "--ckpt_milestone",
        type=Path,
        default=RESOURCES / "diffcast_demo.safetensors",
        help="weights (default: the demo's)",
    )
    parser.add_argument("--backbone", help="class of the weights as package.module:Class, if it is your own")
    parser.add_argument(
        "--out", type=Path, default=Path("samples"), help="folder for the results (default: %(default)s)"
    )
    add_options(parser, ForecastSettings)
    newest = parser.add_argument_group("with --latest")
    newest.add_argument(
        "--max_age",
        type=float,
        default=Operation.max_age,
        help="refuse to forecast if the newest frame is older than this many intervals (default: %(default)s)",
    )
    newest.add_argument(
        "--format", choices=tuple(FORMATS), default="netcdf", help="of the forecast files (default: %(default)s)"
    )
    newest.add_argument("--now", help="time to use as the present, such as 2023-05-01T12:00, in UTC by default")
    newest.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        help="forecast whenever there is a new frame. Look for one every WATCH seconds (10)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    start_logging()
    with exit_on_input_error():
        check(args)
        settings = build(ForecastSettings, vars(args))
        if args.latest is None:
            sample(args, settings)
        else:
            forecast_latest(args, settings)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for options that are impossible or contradict each other."""
    given = {"max_age": args.max_age != Operation.max_age, "now": args.now, "watch": args.watch}
    given |= {"tile": "tile" in args, "format": args.format != "netcdf"}
    for option, value in given.items():
        if value and args.latest is None:
            raise InputError(f"--{option} belongs to --latest; add that, or leave --{option} out.")
    for option in ("max_age", "watch"):
        value = getattr(args, option)
        if value is not None and not 0 < value < 10**6:
            raise InputError(f"--{option} must lie between 0 and a million, not at {value:g}.")
    if args.now is not None and args.watch is not None:
        raise InputError("--watch uses the clock; leave out --now.")


def load(args: argparse.Namespace, settings: ForecastSettings) -> tuple[nn.Module, Architecture, str]:
    """Load the forecaster in evaluation mode.

    Also returns a description of its weights, which holds the file's name and hash.
    """
    path = find_weights(str(args.ckpt_milestone), Path())
    model, architecture = load_forecaster(path, args.backbone)
    check_members(model, settings)
    place(model, torch.device("cuda" if torch.cuda.is_available() else "cpu")).eval()
    height, width = architecture.frame_shape[1:]
    LOG.info("%s: %s at %d x %d pixels", path, architecture.backbone, height, width)
    return model, architecture, f"{path.name} (SHA-256 {sha256(path)})"


def forecast_latest(args: argparse.Namespace, settings: ForecastSettings) -> None:
    """Forecast from the newest frames, once or until a signal arrives."""
    now = None if args.now is None else parse_time(args.now)
    config = complete_config(args.latest)
    model, architecture, weights = load(args, settings)
    folder, settings = writable_folder(args.out, "the forecasts"), settings.fitting(model)
    about = describe(find_weights(str(args.ckpt_milestone), Path())).metadata
    course = about.get("course")
    operation = Operation(
        model,
        architecture.label,
        config,
        settings,
        folder,
        weights,
        args.max_age,
        trained=about.get("source"),
        suffix=FORMATS[args.format],
        native=isinstance(course, dict) and bool(course.get("crop")),
    )
    if args.watch is None:
        operation.run(now)
    else:
        watch(operation, args.watch)


def parse_time(text: str) -> datetime:
    """Parse the value of `--now`."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = datetime.min
    if not 1900 <= time.year <= 2999:
        raise InputError(f"--now must be a time such as 2023-05-01T12:00, not {text}.")
    return time


def sample(args: argparse.Namespace, settings: ForecastSettings) -> None:
    """Forecast, draw and score sequences."""
    model, architecture, weights = load(args, settings)
    _, height, width = model.frame_shape
    if height != width:
        raise InputError(f"{weights} is for {height} x {width} pixels and --seqs has square frames; use --latest.")
    source = synthetic(VIL) if args.seqs.resolve() == DEMO else VIL
    check_source(settings.of_pysteps, source)
    device = device_of(model)
    sequences = read_sequences(args.seqs, model.frames_in, model.frames_out, height)
    settings = settings.fitting(model)
    identity = {"weights": weights, "seqs": str(args.seqs.resolve())} | asdict(settings)
    del identity["forecast_batch"], identity["tile"]  # which do not change the forecasts
    folder = own_folder(args.out.resolve(), identity)
    scores: dict[str, Scores] = {}
    for number, sequence in enumerate(tqdm(sequences, desc="forecasting", unit="seq")):
        draws = generators(device, settings.seed, 3, [number])
        forecasts = forecast_all(model, sequence.inputs.to(device)[None], settings, draws, architecture.label)
        draw(folder, sequence, forecasts, source)
        if sequence.targets is not None:
            for name, frames in forecasts.items():
                if name not in scores:
                    scores[name] = Scores.of(source, model.frames_out, frames.shape[1])
                scores[name].update(frames.cpu(), sequence.targets[None])
    LOG.info("pictures of %d sequences, read as %s, in %s", len(sequences), source.name, folder)
    if scores:
        LOG.info("%s", score_table({name: of_one.compute() for name, of_one in scores.items()}))


def draw(folder: Path, sequence: Sequence, forecasts: dict[str, torch.Tensor], source: Source) -> None:
    """Draw one sequence and its forecasts `(1, M, T, C, H, W)`."""
    of_one = {name: frames[0] for name, frames in forecasts.items()}
    pixel_km = source.extent / sequence.inputs.shape[-1]
    draw_case(folder, sequence.name, sequence.inputs, sequence.targets, of_one, source, pixel_km)


if __name__ == "__main__":
    main()
