"""Forecast a few sequences and draw them.

    python sample_batch.py                                        the demo sequences, with the weights that ship
    python sample_batch.py --members 8 --sampler ddim --sampling_steps 250
    python sample_batch.py --seqs my_frames --ckpt_milestone Exps/.../checkpoints/best.safetensors
    python sample_batch.py --latest /radar --ckpt_milestone Exps/.../checkpoints/best.safetensors --members 20 --watch

Weights of your own class need its name: `--backbone my_package.my_module:MyNet`.

`--seqs` is a folder of sequences, or one sequence: a folder with `inputs/` (at least as many frames as the model
observes) and, if the future is known, `targets/`: square grey 8-bit PNG frames, in order of their names. They are
resized to what the model was trained on. A strip (PNG) and an animation (GIF) of each sequence appear in `--out`, and
with `--members` above 1 a second pair, `<sequence>_ensemble`: mean, spread, and the probabilities of VIL >= 74 and >=
133, which are shares of the members. Where targets are given, scores are printed. If other weights or options have left
pictures in `--out`, new ones go to `<out>_2` and so on.

`--latest` is a folder of frames that their names date, with a `frames.yaml` (see `resources/frames_example.yaml`). The
newest ones are forecast from: `forecast_<time of the newest>.nc` appears in `--out`, a NetCDF-4 file with the members,
their mean and the probabilities of the thresholds, and pictures with the same name. What exists is never overwritten.
With `--watch`, the same happens for every new frame until SIGTERM or Ctrl-C.
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
from dataset.frames.config import read_config
from dataset.source import VIL, Source, synthetic
from diffcast.commandline.arguments import add_sampling, check_sampling
from diffcast.evaluation.loop import EvaluationSettings, forecast_all, score_table
from diffcast.forecaster import describe, load_forecaster, place
from diffcast.forecasting.operational import Operation
from diffcast.forecasting.pictures import draw_case
from diffcast.loading import generators
from diffcast.model import DiffCast
from utils.checkpoint import find_weights
from utils.claims import own_folder
from utils.errors import InputError, exit_on_input_error
from utils.files import writable_folder
from utils.log import start_logging
from utils.metrics import Scores
from utils.provenance import sha256

LOG = logging.getLogger("sample_batch")
RESOURCES = Path(__file__).resolve().parent / "resources"
DEMO = RESOURCES / "demo_sequences"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--seqs", type=Path, default=DEMO, help="folder of sequences, or one (default: the demo's)")
    data.add_argument("--latest", type=Path, help="folder of dated frames, to forecast from the newest")
    parser.add_argument(
        "--ckpt_milestone",
        type=Path,
        default=RESOURCES / "diffcast_demo.safetensors",
        help="weights (default: the demo's)",
    )
    parser.add_argument("--backbone", help="the weights' own class as package.module:Class, if they have one")
    parser.add_argument(
        "--out", type=Path, default=Path("samples"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--members", type=int, default=1, help="ensemble members (default: %(default)s)")
    add_sampling(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    newest = parser.add_argument_group("with --latest")
    newest.add_argument(
        "--max_age", type=float, help=f"intervals that the newest frame may be old (default: {Operation.max_age})"
    )
    newest.add_argument("--now", help="time to take for the present, such as 2023-05-01T12:00, in UTC unless it says")
    newest.add_argument(
        "--watch", type=float, nargs="?", const=10.0, help="go on, and look for a new frame every WATCH seconds (10)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    start_logging()
    with exit_on_input_error():
        check(args)
        if args.latest is None:
            sample(args)
        else:
            forecast_latest(args)


def check(args: argparse.Namespace) -> None:
    """Raise `InputError` for values that are not possible, or not together."""
    check_sampling(args)
    if args.seed < 0:
        raise InputError(f"--seed must not be negative, as {args.seed} is.")
    for option in ("max_age", "now", "watch"):
        if getattr(args, option) is not None and args.latest is None:
            raise InputError(f"--{option} belongs to --latest; add that, or leave --{option} out.")
    for option in ("max_age", "watch"):
        value = getattr(args, option)
        if value is not None and not 0 < value < 10**6:
            raise InputError(f"--{option} must lie between 0 and a million, not at {value:g}.")
    if args.now is not None and args.watch is not None:
        raise InputError("--watch goes with the clock; leave out --now.")


def load(args: argparse.Namespace) -> tuple[nn.Module, str, str, object]:
    """The forecaster, ready to run, its name, the file of its weights with their hash, and what they say of the data.

    Official weights say nothing.
    """
    path = find_weights(str(args.ckpt_milestone), Path())
    model, architecture = load_forecaster(path, args.backbone)
    place(model, torch.device("cuda" if torch.cuda.is_available() else "cpu")).eval()
    height, width = architecture.frame_shape[1:]
    LOG.info("%s: %s at %d x %d pixels", path, architecture.backbone, height, width)
    name = ("diffcast_" if architecture.use_diff else "") + architecture.backbone.replace(":", ".")
    trained = describe(path).metadata.get("source")
    return model, name, f"{path.name} (SHA-256 {sha256(path)})", trained


def sampling(args: argparse.Namespace) -> EvaluationSettings:
    """How to forecast."""
    return EvaluationSettings(args.seed, args.members, args.sampler, args.sampling_steps)


def forecast_latest(args: argparse.Namespace) -> None:
    """Forecast from the newest frames, once or until told to stop."""
    now = None if args.now is None else parse_time(args.now)
    config = read_config(args.latest)
    model, name, weights, trained = load(args)
    folder, max_age = writable_folder(args.out, "the forecasts"), args.max_age or Operation.max_age
    operation = Operation(model, name, config, sampling(args), folder, weights, max_age, trained)
    if args.watch is None:
        operation.run(now)
    else:
        operation.watch(args.watch)


def parse_time(text: str) -> datetime:
    """The time that `--now` gives."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = datetime.min
    if not 1900 <= time.year <= 2999:
        raise InputError(f"--now must be a time such as 2023-05-01T12:00, not {text}.")
    return time


def sample(args: argparse.Namespace) -> None:
    """Forecast, draw and score."""
    model, own, weights, _ = load(args)
    _, height, width = model.frame_shape
    if height != width:
        raise InputError(f"{weights} is for {height} x {width} pixels and --seqs has square frames; use --latest.")
    if args.members > 1 and not isinstance(model, DiffCast):
        raise InputError(f"{weights} is a backbone alone, which makes one forecast; leave out --members.")
    device = next(model.parameters()).device
    sequences = read_sequences(args.seqs, model.frames_in, model.frames_out, height)
    settings = sampling(args)
    identity = {"weights": weights, "seqs": str(args.seqs.resolve())} | asdict(settings)
    folder = own_folder(args.out.resolve(), identity)
    source = synthetic(VIL) if args.seqs.resolve() == DEMO else VIL
    scores: dict[str, Scores] = {}
    for number, sequence in enumerate(tqdm(sequences, desc="forecasting", unit="seq")):
        draws = generators(device, args.seed, 3, [number])
        forecasts = forecast_all(model, sequence.inputs.to(device)[None], settings, draws, own)
        draw(folder, sequence, forecasts, source)
        if sequence.targets is not None:
            for name, frames in forecasts.items():
                scores.setdefault(
                    name, Scores(source.scale, source.thresholds, model.frames_out, frames.shape[1])
                ).update(frames.cpu(), sequence.targets[None])
    LOG.info("pictures of %d sequences, taken for %s, in %s", len(sequences), source.name, folder)
    if scores:
        LOG.info("%s", score_table({name: of_one.compute() for name, of_one in scores.items()}))


def draw(folder: Path, sequence: Sequence, forecasts: dict[str, torch.Tensor], source: Source) -> None:
    """Draw one sequence and its forecasts `(1, M, T, C, H, W)`."""
    of_one = {name: frames[0] for name, frames in forecasts.items()}
    pixel_km = source.extent / sequence.inputs.shape[-1]
    draw_case(folder, sequence.name, sequence.inputs, sequence.targets, of_one, source, pixel_km)


if __name__ == "__main__":
    main()
