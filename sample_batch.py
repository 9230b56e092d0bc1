"""Forecast a few sequences and draw them.

    python sample_batch.py                                        the demo sequences, with the weights that ship
    python sample_batch.py --members 8 --sampling_steps 50
    python sample_batch.py --seqs my_frames --ckpt_milestone Exps/.../checkpoints/best.safetensors

`--seqs` is a folder of sequences, each a folder with `inputs/` (at least as many frames as the model observes) and, if
the future is known, `targets/`: square grey 8-bit PNG frames, in order of their names. They are resized to what the
model was trained on. A strip (PNG) and an animation (GIF) of each sequence appear in `--out`, and with `--members`
above 1 a second pair, `<sequence>_ensemble`: mean, spread, and the probabilities of VIL >= 74 and >= 133, which are
shares of the members. Where targets are given, scores are printed.
"""

import argparse
import logging
from pathlib import Path

import torch
from tqdm import tqdm

from dataset.png import Sequence, read_sequences
from dataset.source import VIL
from diffcast.evaluation import EvaluationSettings, forecast_all, score_table
from diffcast.forecaster import load_forecaster, place
from diffcast.loading import generators
from diffcast.pictures import draw_case
from diffcast.samplers import SAMPLERS
from utils.checkpoint import find_weights
from utils.errors import InputError, exit_on_input_error
from utils.files import writable_folder
from utils.log import start_logging
from utils.metrics import Scores

LOG = logging.getLogger("sample_batch")
RESOURCES = Path(__file__).parent / "resources"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seqs", type=Path, default=RESOURCES / "demo_sequences", help="folder of sequences (default: the demo's)"
    )
    parser.add_argument(
        "--ckpt_milestone",
        type=Path,
        default=RESOURCES / "diffcast_demo.safetensors",
        help="weights (default: the demo's)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("samples"), help="folder for the pictures (default: %(default)s)"
    )
    parser.add_argument("--members", type=int, default=1, help="ensemble members (default: %(default)s)")
    parser.add_argument(
        "--sampler", default="ddim", choices=list(SAMPLERS), help="of the diffusion (default: %(default)s)"
    )
    parser.add_argument(
        "--sampling_steps", type=int, default=250, help="network evaluations per segment (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    start_logging()
    with exit_on_input_error():
        if not 1 <= args.sampling_steps <= 1000:
            raise InputError(f"--sampling_steps must lie between 1 and 1000, not {args.sampling_steps}.")
        if args.members < 1:
            raise InputError(f"--members must be at least 1, not {args.members}.")
        if args.seed < 0:
            raise InputError(f"--seed must not be negative, as {args.seed} is.")
        sample(args)


def sample(args: argparse.Namespace) -> None:
    """Forecast, draw and score."""
    path = find_weights(str(args.ckpt_milestone), Path())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, architecture = load_forecaster(path)
    place(model, device).eval()
    sequences = read_sequences(args.seqs, model.frames_in, model.frames_out, architecture.frame_shape[1])
    folder = writable_folder(args.out, "the pictures")
    LOG.info("%s: %s at %d pixels", path, architecture.backbone, architecture.frame_shape[1])
    settings = EvaluationSettings(members=args.members, sampler=args.sampler, sampling_steps=args.sampling_steps)
    own = f"diffcast_{architecture.backbone}" if architecture.use_diff else architecture.backbone
    scores: dict[str, Scores] = {}
    for number, sequence in enumerate(tqdm(sequences, desc="forecasting", unit="seq")):
        draws = generators(device, args.seed, 3, [number])
        forecasts = forecast_all(model, sequence.inputs.to(device)[None], settings, draws, own)
        draw(folder, sequence, forecasts)
        if sequence.targets is not None:
            for name, frames in forecasts.items():
                scores.setdefault(name, Scores(VIL.scale, VIL.thresholds, model.frames_out, frames.shape[1])).update(
                    frames.cpu(), sequence.targets[None]
                )
    LOG.info("pictures of %d sequences in %s", len(sequences), folder)
    if scores:
        LOG.info("%s", score_table({name: of_one.compute() for name, of_one in scores.items()}))


def draw(folder: Path, sequence: Sequence, forecasts: dict[str, torch.Tensor]) -> None:
    """Draw one sequence and its forecasts `(1, M, T, C, H, W)`."""
    of_one = {name: frames[0] for name, frames in forecasts.items()}
    draw_case(folder, sequence.name, sequence.inputs, sequence.targets, of_one, VIL)


if __name__ == "__main__":
    main()
