"""The command line of `run.py`: its options, the contradictions among them, and the settings they stand for."""

import argparse
import math
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml

from dataset import DATASETS, SCALED
from diffcast.described import Description, plain
from diffcast.evaluation.loop import BASELINES, EvaluationSettings
from diffcast.forecaster import Architecture
from diffcast.process import LOSS_WEIGHTS
from diffcast.samplers import SAMPLERS, STEPS
from diffcast.training.loop import TrainingSettings
from models import BACKBONES, SIZES
from utils.errors import InputError
from utils.processors import loading_processes

# What a resumed training must have in common with the interrupted one, so that it is the same training.
COURSE = (
    *("seed", "lr", "lr_beta1", "lr_beta2", "l2_norm", "scheduler", "warmup_steps", "ema_rate", "mixed_precision"),
    *("batch_size", "grad_acc_step", "diffusion_weight", "loss_weight", "freeze_backbone"),
    *("dataset", "split", "stride", "augment"),
)
# What it takes over unless the user says otherwise.
LENGTH = (
    *("epochs", "training_steps", "valid_every", "valid_sequences", "early_stop", "max_bad_steps"),
    "keep_checkpoints",
)
OF_DATA = ("dataset", "split", "scale")
OF_BACKBONE = ("backbone", "backbone_options", "img_channel", "img_size", "frames_in", "frames_out")

SPLITS = ("official", "benchmark")
TIMESTEPS = 1000  # of the diffusion process
MAX_MEMBERS = 500  # the scores of ranks take a gigabyte then, and memory as the cube of the members


class Parser(argparse.ArgumentParser):
    """Reads arguments from `@file` too: several a line, `#` begins a comment."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return arg_line.split("#")[0].split()

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        try:
            return super().parse_known_args(args, namespace)
        except (ValueError, RecursionError) as error:  # of a file that is no text, or that includes itself
            files = ", ".join(word for word in args if word.startswith("@"))
            self.error(f"can't read arguments from {files}: {error}")


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines and shows defaults, but for those that the help text tells itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default is None else super()._get_help_string(action)


def build_parser(description: str) -> argparse.ArgumentParser:
    """The command line; names and defaults of the official tool, and more."""
    parser = Parser(
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        fromfile_prefix_chars="@",
    )

    for title, add_arguments in {
        "model": _model_arguments,
        "data": _data_arguments,
        "training": _training_arguments,
        "evaluation": _evaluation_arguments,
        "output": _output_arguments,
    }.items():
        add_arguments(parser.add_argument_group(title))
    return parser


def _model_arguments(group) -> None:
    group.add_argument(
        "--backbone", default="phydnet", help=f"{', '.join(BACKBONES)}, or your own class as package.module:Class"
    )
    group.add_argument(
        "--backbone_options", nargs="*", default=[], metavar="NAME=VALUE", help="options of the backbone's constructor"
    )
    group.add_argument("--use_diff", action="store_true", help="DiffCast: the backbone plus residual diffusion")
    group.add_argument("--dim", type=int, default=64, help="width of the diffusion networks")
    group.add_argument(
        "--dim_mults",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8],
        metavar="N",
        help="their widths per level, in units of --dim",
    )
    group.add_argument(
        "--segment_length", type=int, help="frames of one diffusion run; as many as --frames_in if not given"
    )
    group.add_argument(
        "--loss_weight",
        default="signal",
        choices=LOSS_WEIGHTS,
        help="of diffusion times in the loss: their share of signal, as in the official code, or the same for all",
    )
    group.add_argument(
        "--residual_scale",
        type=float,
        default=1.0,
        help="what the diffusion takes for 1, of frames in [-1, 1]; the residual's deviation trains fastest (some 0.2)",
    )
    group.add_argument(
        "--diffusion_weight", type=float, default=0.5, help="share of the diffusion loss, the paper's alpha"
    )


def _data_arguments(group) -> None:
    group.add_argument(
        "--dataset",
        default="sevir",
        choices=list(DATASETS),
        help="frames: your own, see the README; synthetic storms are generated on first use",
    )
    group.add_argument("--data_path", type=Path, help="folder or file of the data set; data/<dataset> if not given")
    group.add_argument(
        "--scale",
        type=float,
        help="dBZ of the highest stored value of shanghai and cikm; 90 as in the paper if not given",
    )
    group.add_argument("--packed_path", type=Path, help="folder of the packed cache; <data_path>/packed if not given")
    group.add_argument("--split", default="official", choices=SPLITS, help="dates and windows of the splits")
    group.add_argument("--stride", type=int, help="frames between windows; as the split has it if not given")
    group.add_argument(
        "--img_size",
        type=int,
        nargs="+",
        default=[128],
        metavar="PIXELS",
        help="of a frame's side, or height and width; other frames are resized",
    )
    group.add_argument("--img_channel", type=int, default=1, help="channels of a frame")
    group.add_argument("--seq_len", type=int, default=25, help="frames of a sequence")
    group.add_argument("--frames_in", type=int, default=5, help="of these, observed")
    group.add_argument("--frames_out", type=int, default=20, help="of these, to forecast")
    group.add_argument(
        "--num_workers",
        type=int,
        default=4,
        help="processes that load data for each process of the run, at most one per processor",
    )


def _training_arguments(group) -> None:
    group.add_argument("--batch_size", type=int, default=6, help="sequences per process and batch")
    group.add_argument(
        "--augment", action="store_true", help="flip and (square frames) rotate each training sequence at random"
    )
    group.add_argument("--grad_acc_step", type=int, default=1, help="batches per optimiser step")
    group.add_argument(
        "--epochs",
        type=int,
        help=f"minimum number of epochs. The default is {TrainingSettings.epochs}, or 0 if --training_steps is given",
    )
    group.add_argument(
        "--training_steps",
        type=int,
        help="minimum number of optimiser steps. Without --epochs it is their exact number. "
        f"The default is {TrainingSettings.training_steps}",
    )
    group.add_argument("--no_eval", action="store_true", help="skip the evaluation that follows a training")
    group.add_argument("--lr", type=float, default=1e-4, help="learning rate of AdamW")
    group.add_argument("--lr-beta1", type=float, default=0.90, help="its first decay rate")
    group.add_argument("--lr-beta2", type=float, default=0.95, help="its second decay rate")
    group.add_argument("--l2-norm", type=float, default=0.0, help="its weight decay")
    group.add_argument(
        "--scheduler",
        default="cosine",
        choices=["constant", "linear", "cosine"],
        help="of the learning rate, after the warm-up",
    )
    group.add_argument("--warmup_steps", type=int, default=1000, help="of the learning rate")
    group.add_argument("--ema_rate", type=float, default=0.95, help="decay of the averaged weights per 20 steps")
    group.add_argument(
        "--mixed_precision",
        default="no",
        choices=["no", "fp16", "bf16", "auto"],
        help="precision of the forward pass in training. auto is bf16 where that is native to the device, else no",
    )
    _course_arguments(group)


def _course_arguments(group) -> None:
    """Options of validations, checkpoints, and where a training starts."""
    group.add_argument(
        "--early_stop", type=int, default=10, help="validations without improvement before stopping; 0: never"
    )
    group.add_argument(
        "--valid_every", type=int, default=2000, help="steps between validations, each of which writes a checkpoint"
    )
    group.add_argument("--valid_sequences", type=int, default=256, help="sequences per validation, evenly spread")
    group.add_argument("--keep_checkpoints", type=int, default=3, help="latest checkpoints to keep besides the best")
    group.add_argument(
        "--max_bad_steps",
        type=int,
        default=10,
        help="steps in a row, each skipped because its loss or gradient is not finite, that end the training",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from the latest whole checkpoint, if there is any, or from a given one",
    )
    group.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="with --use_diff: compute activations again in the backward pass, a third slower, with 40 %% less memory",
    )
    group.add_argument("--backbone_ckpt", metavar="CHECKPOINT", help="weights that DiffCast's backbone starts from")
    group.add_argument("--freeze_backbone", action="store_true", help="train the diffusion only")
    group.add_argument(
        "--compile",
        action="store_true",
        help="translate the networks by torch.compile, also in forecasts: minutes at the start, then faster",
    )
    group.add_argument("--seed", type=int, default=0, help="of everything random")


def _evaluation_arguments(group) -> None:
    group.add_argument("--eval", action="store_true", help="only evaluate, on the test split")
    group.add_argument(
        "--ckpt_milestone",
        metavar="CHECKPOINT",
        help="weights to evaluate, which tell network and data set: file or folder, step of the run, best or latest",
    )
    group.add_argument("--members", type=int, default=1, help="ensemble members, with --use_diff or --dress")
    group.add_argument(
        "--dress",
        action="store_true",
        help="also score the trend plus residuals of unrelated training sequences: an ensemble without learning",
    )
    add_sampling(group)
    group.add_argument(
        "--eval_sequences", type=int, help="score only so many, evenly spread over the test split; all if not given"
    )
    group.add_argument(
        "--cases", type=int, default=3, help="sequences to draw: those with the best and the worst CRPS, and between"
    )
    group.add_argument(
        "--lpips", action="store_true", help="also the learned perceptual distance; needs the package lpips"
    )
    group.add_argument(
        "--forecast_precision",
        default="auto",
        choices=["auto", "float32", "bfloat16"],
        help="of the diffusion networks in forecasts; auto: bfloat16 where the device computes in it natively",
    )
    group.add_argument(
        "--forecast_batch",
        type=int,
        default=12,
        help="forecasts (sequences x members) at a time, which bounds the memory",
    )


def _output_arguments(group) -> None:
    group.add_argument("--exp_dir", default="basic_exps", help="folder below Exps, or an absolute path")
    group.add_argument("--exp_note", help="appended to the run's name")
    group.add_argument("--log_with", nargs="*", default=[], choices=["tensorboard", "wandb"], help="trackers")
    group.add_argument(
        "--wandb_state", default="disabled", choices=["disabled", "online", "offline"], help="mode of the wandb tracker"
    )
    group.add_argument(
        "--dry_run", action="store_true", help="print settings, data counts, parameters, GFLOPs and memory, and stop"
    )


def add_sampling(group) -> None:
    """The options of every command line that forecasts; `check_sampling` completes what they leave open."""
    group.add_argument(
        "--sampler", default="dpm", choices=list(SAMPLERS), help="of the diffusion; the official one is ddim"
    )
    own = ", ".join(f"{steps} for {name}" for name, steps in STEPS.items())
    group.add_argument(
        "--sampling_steps",
        type=int,
        help=f"network evaluations per segment; if not given: {own}",
    )


def check_sampling(args: argparse.Namespace) -> None:
    """Find numbers that are too large, and give the sampler its own number of steps if none is given.

    Raises `InputError` for whole numbers from 2**31 on, of any option but --seed, and for too many members or steps.
    """
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) >= (2**63 if name == "seed" else 2**31):
                raise InputError(f"--{name} {number} is too large.")
    if not 1 <= args.members <= MAX_MEMBERS:
        raise InputError(f"--members must lie between 1 and {MAX_MEMBERS}, not {args.members}.")
    if args.sampling_steps is None:
        args.sampling_steps = STEPS[args.sampler]
    if not 1 <= args.sampling_steps <= TIMESTEPS:
        raise InputError(f"--sampling_steps must lie between 1 and {TIMESTEPS}, not {args.sampling_steps}.")


def complete_length(args: argparse.Namespace) -> None:
    """Give `epochs` and `training_steps` their defaults; steps alone count alone."""
    if args.epochs is None:
        args.epochs = TrainingSettings.epochs if args.training_steps is None else 0
    if args.training_steps is None:
        args.training_steps = TrainingSettings.training_steps


def check_purpose(args: argparse.Namespace) -> None:
    """Find options that ask for training and evaluation at once, before any checkpoint is read."""
    if args.ckpt_milestone and not args.eval:
        raise InputError("--ckpt_milestone names weights to evaluate: add --eval, or use --resume to go on training.")
    if args.eval and args.no_eval:
        raise InputError("--eval only evaluates and --no_eval leaves that out; give one of them.")
    if args.eval and args.resume:
        raise InputError("--eval evaluates and --resume goes on training; give one of them.")


def check(args: argparse.Namespace) -> None:
    """Find options that contradict each other before anything is built."""
    complete_length(args)
    if args.frames_in + args.frames_out != args.seq_len:
        raise InputError(
            f"--frames_in {args.frames_in} + --frames_out {args.frames_out} is not --seq_len {args.seq_len}; "
            "make them add up."
        )
    if len(args.img_size) > 2 or min(args.img_size) < 1:
        raise InputError(f"--img_size takes one or two positive numbers, not {' '.join(map(str, args.img_size))}.")
    positive = (
        "frames_in frames_out img_channel batch_size grad_acc_step training_steps valid_every valid_sequences "
        "keep_checkpoints max_bad_steps stride eval_sequences forecast_batch"
    )
    for name in positive.split():
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(args, name)}.")
    for name in ["epochs", "warmup_steps", "early_stop", "cases", "seed"]:
        if getattr(args, name) < 0:
            raise InputError(f"--{name} must not be negative, as {getattr(args, name)} is.")
    args.num_workers = loading_processes(args.num_workers)
    if args.img_channel != 1:
        raise InputError(f"--img_channel {args.img_channel}: the data sets have one channel; leave it at 1.")
    check_sampling(args)
    for option, name in {"ema_rate": "ema_rate", "lr-beta1": "lr_beta1", "lr-beta2": "lr_beta2"}.items():
        if not 0 <= getattr(args, name) < 1:
            raise InputError(f"--{option} must lie in [0, 1), not {getattr(args, name)}.")
    for option, value in {"lr": args.lr, "l2-norm": args.l2_norm}.items():
        if not 0 <= value < math.inf:
            raise InputError(f"--{option} must be a number of at least 0, not {value}.")
    if args.exp_note and Path(args.exp_note).name != args.exp_note:
        raise InputError(f"--exp_note {args.exp_note} becomes part of a folder's name; leave out the slashes.")
    for name in ("backbone_ckpt", "freeze_backbone"):
        if getattr(args, name) and not args.use_diff:
            raise InputError(f"--{name} belongs to --use_diff: give both or neither.")
    if args.eval and not args.ckpt_milestone and (args.use_diff or args.backbone not in BASELINES):
        raise InputError(
            "--eval needs --ckpt_milestone: a checkpoint file or folder, a step of the run, best or latest."
        )
    if args.members > 1 and not (args.use_diff or args.dress):
        raise InputError(
            f"--members {args.members}: {args.backbone} alone makes one forecast; add --use_diff or --dress, or leave "
            "--members out."
        )
    if args.wandb_state != "disabled" and "wandb" not in args.log_with:
        args.log_with.append("wandb")
    if args.wandb_state == "disabled" and "wandb" in args.log_with:
        args.wandb_state = "online"
    for tracker in args.log_with:
        if find_spec(tracker) is None:
            raise InputError(f"--log_with {tracker} needs the package {tracker}: pip install {tracker}.")


def given_options(parser: argparse.ArgumentParser, argv: list[str] | None) -> set[str]:
    """Names of the options that the user gave, in whatever order and file."""
    unset = object()
    args = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), unset))
    parser.parse_args(argv, args)  # which sets defaults only where there is nothing
    return {name for name, value in vars(args).items() if value is not unset}


def settle(
    args: argparse.Namespace, given: set[str], described: Description | None = None, use: str = ""
) -> Architecture:
    """The network that command line and checkpoint describe; what the user left open is set in `args`.

    `use` is the option that named the checkpoint, if there is one. Raises `InputError` where the two contradict.
    """
    options = vars(args) | {
        "img_size": args.img_size * 2 if len(args.img_size) == 1 else args.img_size,
        "backbone_options": parse_options(args.backbone_options),
    }
    if described is not None:
        told = _told(described, use, args)
        if use == "ckpt_milestone":  # other data may be forecast, if it is alike: see `refuse_other_data` of run.py
            other = "dataset" in given and args.dataset != told.get("dataset")
            named = OF_DATA if other else given.intersection(OF_DATA)
            told = {name: value for name, value in told.items() if name not in named}
        options |= described.agreed({name: options[name] for name in options.keys() & given}, told)
        if use == "resume":
            options |= _length(described, given)
        if "seq_len" not in given:
            options["seq_len"] = options["frames_in"] + options["frames_out"]
    words = [f"{name}={_flow(value)}" for name, value in options["backbone_options"].items()]
    vars(args).update({name: plain(options[name]) for name in vars(args)} | {"backbone_options": words})
    return Architecture.of(options)


def _told(described: Description, use: str, args: argparse.Namespace) -> dict:
    """What a checkpoint tells that matters to the option which named it."""
    network, metadata = described.network, described.metadata
    if use == "backbone_ckpt":
        if network["use_diff"]:
            raise InputError(f"--backbone_ckpt {described.path} holds a DiffCast; name weights of its backbone alone.")
        return {name: network[name] for name in OF_BACKBONE if name in network}
    course = {"dataset": metadata.get("dataset")} | _dictionary(metadata.get("course"))
    scale = _dictionary(metadata.get("source")).get("scale")
    course["scale"] = scale if course["dataset"] in SCALED else None
    names = (*COURSE, "scale") if use == "resume" else OF_DATA
    if args.mixed_precision == "auto":  # which is compared once it is known what it stands for here
        course.pop("mixed_precision", None)
    told = {name: course.get(name) for name in names if _is_of_type(course.get(name), getattr(args, name))}
    for name, choices in {"dataset": DATASETS, "split": SPLITS}.items():
        if name in told and told[name] not in choices:
            raise InputError(
                f"checkpoint {described.path} was trained with --{name} {told[name]}, which is unknown here."
            )
    return network | told


def _length(described: Description, given: set[str]) -> dict:
    """How long a training was to be, as far as the user does not say; steps and epochs belong together."""
    given = given | {"epochs", "training_steps"} if given & {"epochs", "training_steps"} else given
    found = _dictionary(described.metadata.get("length"))
    return {name: found[name] for name in LENGTH if name not in given and type(found.get(name)) is int}


def _is_of_type(value: object, example: object) -> bool:
    return type(value) is type(example) if example is not None else isinstance(value, int | float)


def _dictionary(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _flow(value: object) -> str:
    """A value as `parse_options` reads it."""
    return yaml.safe_dump(plain(value), default_flow_style=True, width=math.inf).partition("\n")[0]


def parse_options(options: list[str]) -> dict:
    """`NAME=VALUE` strings to a dictionary, values read as YAML."""
    parsed = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not (name.isidentifier() and equals):
            raise InputError(f"--backbone_options {option!r} does not have the form NAME=VALUE.")
        if name in ("name", *SIZES):
            raise InputError(f"--backbone_options {option!r}: this follows from the other arguments; leave it out.")
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--backbone_options {option!r}: its value is no number, list or word.") from None
    return parsed


def training_settings(args: argparse.Namespace) -> TrainingSettings:
    """The arguments that concern training."""
    same = {name: getattr(args, name) for name in TrainingSettings.__dataclass_fields__ if hasattr(args, name)}
    return TrainingSettings(**same, betas=(args.lr_beta1, args.lr_beta2), weight_decay=args.l2_norm)


def evaluation_settings(args: argparse.Namespace) -> EvaluationSettings:
    """The arguments that concern evaluation."""
    return EvaluationSettings(
        seed=args.seed,
        members=args.members,
        sampler=args.sampler,
        sampling_steps=args.sampling_steps,
        forecast_batch=args.forecast_batch,
        precision=args.forecast_precision,
        compile=args.compile,
        lpips=args.lpips,
        sequences=args.eval_sequences,
        cases=args.cases,
        num_workers=args.num_workers,
    )


def plain_settings(args: argparse.Namespace) -> dict:
    """All arguments, ready for YAML and JSON."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
