"""Weights of the papers' official code in and out.

    python -m diffcast.convert import diffcast_phydnet_sevir128.pt diffcast.safetensors
    python -m diffcast.convert export Exps/.../checkpoints/best.safetensors official.pt

`import` writes weights for `sample_batch.py` and `run.py --ckpt_milestone`, which also read official files directly.
`export` writes what the official code loads strictly, and refuses networks that it would compute otherwise. It adds
our settings as one entry next to the weights, so that the way back changes nothing.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from diffcast.forecaster import describe, load_forecaster
from diffcast.official import inexpressible, official_call, official_state
from utils.errors import InputError, exit_on_input_error
from utils.files import replacing, writable_folder
from utils.official import NOTE
from utils.weights import save_weights


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcast.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    bring = commands.add_parser(
        "import", help="convert official weights to ours. The file determines most of the architecture"
    )
    bring.add_argument("source", type=Path, help="official .pt or .ckpt")
    bring.add_argument("target", type=Path, help=".safetensors to write")
    bring.add_argument("--img_size", type=int, help="side of a frame in pixels, if the file leaves it open (128)")
    bring.add_argument("--frames_in", type=int, help="number of observed frames, if the file leaves it open (5)")
    bring.add_argument("--frames_out", type=int, help="number of forecast frames, if the file leaves it open (20)")
    bring.set_defaults(command=_import)
    export = commands.add_parser("export", help="convert our weights to official ones")
    export.add_argument("source", type=Path, help="our .safetensors")
    export.add_argument("target", type=Path, help="official .pt to write")
    export.add_argument("--backbone", help="class of the weights as package.module:Class, if it is your own")
    export.set_defaults(command=_export)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    with exit_on_input_error():
        args.command(args)


def _import(args: argparse.Namespace) -> None:
    if args.target.suffix != ".safetensors":
        raise InputError(f"{args.target} must end in .safetensors, which distinguishes our weights from official ones.")
    sizes = {option: getattr(args, option) for option in ("img_size", "frames_in", "frames_out")}
    for option, value in sizes.items():
        if value is not None and value < 1:
            raise InputError(f"--{option} must be at least 1, not {value}.")
    model, architecture = load_forecaster(args.source, **sizes)
    described = describe(args.source).metadata | {"architecture": architecture.to_metadata()}
    writable_folder(args.target.parent, args.target.name)
    save_weights(args.target, model.state_dict(), described)
    settings = ", ".join(f"{name} {value}" for name, value in architecture.to_metadata().items())
    sys.stdout.write(f"{args.target}: {settings}\n")


def _export(args: argparse.Namespace) -> None:
    model, architecture = load_forecaster(args.source, args.backbone)
    options = architecture.options()
    if impossible := inexpressible(options):
        raise InputError(
            f"{args.source} cannot be exported, since the official code would compute something else (ours / its): "
            f"{'; '.join(impossible)}."
        )
    state, metadata = official_state(model), describe(args.source).metadata
    note = json.dumps(metadata | {"architecture": architecture.to_metadata()})
    writable_folder(args.target.parent, args.target.name)
    with replacing(args.target) as temporary:
        torch.save({"model": state, NOTE: note}, temporary)
    sys.stdout.write(
        f"{args.target}: {len(state)} official entries; the official code needs {official_call(options)}\n"
    )


if __name__ == "__main__":
    main()
