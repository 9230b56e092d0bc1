"""Train or evaluate a forecaster.

    python run.py --backbone simvp                          train a backbone, then score it on the test split
    python run.py --backbone simvp --use_diff               train DiffCast around it, end to end
    accelerate launch run.py --use_diff                     the same on all GPUs
    accelerate launch --cpu --num_processes 2 run.py ...    or on processors
    python run.py --backbone simvp --use_diff --eval --ckpt_milestone best
    python run.py --eval --ckpt_milestone path/to/best.safetensors      the file tells network and data set
    python run.py @resources/demo.args                      arguments from a file

Results appear in Exps/<exp_dir>/<Diff|Single><backbone>_<dataset>[_<exp_note>].

Exit status 0 is success, 2 a mistake, told in one sentence, and 75 a run that was asked to stop and may go on: upon
SIGTERM, SIGINT or SIGUSR1, a training finishes its step and writes a checkpoint, everything else stops at once, and an
evaluation keeps the parts that it has scored. A second signal ends the run at once. The same command, a training's with
--resume, goes on. A training that was stopped leaves a file PREEMPTED in its folder and removes it when it goes on; an
evaluation is finished when its folder holds metrics.json.

With several processes the launcher's status arrives instead: torchrun and accelerate end with 1 for whatever is not 0,
and with 128 plus its number if the signal ends the launcher itself, so a job script asks for PREEMPTED. torchrun passes
on SIGTERM and SIGINT, and SIGUSR1 if told: torchrun --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 ...
`accelerate launch` on GPUs cannot be told; signal all processes of the job instead, or use torchrun.
"""

import argparse
import contextlib
import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration, parse_flag_from_env

from dataset import build_dataset
from diffcast.commandline import arguments
from diffcast.commandline.arguments import COURSE, LENGTH, evaluation_settings, plain_settings, training_settings
from diffcast.commandline.summary import summarise
from diffcast.described import Description
from diffcast.evaluation.loop import evaluate
from diffcast.evaluation.results import data_differences, describe_source
from diffcast.forecaster import Architecture, describe, load_forecaster_weights
from diffcast.forecasting.dressed import dress
from diffcast.precision import training_precision, warn_if_emulated
from diffcast.processes import ending_loaders, patience, reporting_lost_processes, start_missing_processes
from diffcast.training.loop import train
from diffcast.training.settings import describe_length, total_steps
from diffcast.training.validation import alone_in
from utils import checkpoint
from utils.errors import InputError, exit_on_input_error
from utils.files import replacing, writable_folder
from utils.log import format_table, start_logging
from utils.preemption import MARKER, Stopped, exit_when_stopped
from utils.provenance import provenance, sha256
from utils.weights import load_metadata

LOG = logging.getLogger("run")
PATIENCE = timedelta(hours=2)  # of processes with each other: one may have a batch of forecasts more than another
TRAINING_PATIENCE = timedelta(minutes=10)  # while they train, where their work is the same


def build_parser():
    """The command line, see `diffcast.commandline.arguments`."""
    return arguments.build_parser(__doc__)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = build_parser()
    args = parser.parse_args(argv)
    advice = "the same command goes on" if args.eval or args.resume == "auto" else "the same with --resume goes on"
    with ending_loaders(), exit_on_input_error():
        arguments.check_purpose(args)
        architecture = resolve(args, arguments.given_options(parser, argv))
        marker = None if args.dry_run or args.eval else run_folder(args) / MARKER
        with exit_when_stopped(advice, marker), reporting_lost_processes(advice):
            arguments.check(args)
            run(args, architecture)


def resolve(args, given: set[str]) -> Architecture:
    """The network that command line and checkpoint describe; what the checkpoint tells is completed in `args`."""
    folder = run_folder(args) / "checkpoints"
    named = given | {"backbone", "use_diff", "dataset"}  # what the folder's name holds
    if args.eval and args.ckpt_milestone:
        by_name = checkpoint.is_name(args.ckpt_milestone)
        if by_name:
            hint_at_use_diff(args, folder)
        described = describe(checkpoint.find_weights(args.ckpt_milestone, folder))
        return arguments.settle(args, named if by_name else given, described, "ckpt_milestone")
    if args.resume == "auto" and (described := newest_described(folder)):
        return arguments.settle(args, named, described, "resume")
    if args.resume not in (None, "auto"):
        path = Path(args.resume)
        checkpoint.existing(path / checkpoint.TRAINING, f"--resume {path}")
        checkpoint.verify(path)
        return arguments.settle(args, given, describe(path / checkpoint.WEIGHTS), "resume")
    if args.backbone_ckpt and args.use_diff:
        path = checkpoint.existing(Path(args.backbone_ckpt), "--backbone_ckpt")
        return arguments.settle(args, given, describe(path), "backbone_ckpt")
    return arguments.settle(args, given)


def hint_at_use_diff(args, folder: Path) -> None:
    """Raise `InputError` if the checkpoint is not in a folder but in that of a run with --use_diff, or without."""
    other = run_folder(argparse.Namespace(**vars(args) | {"use_diff": not args.use_diff})) / "checkpoints"
    here, there = (checkpoint.locate(args.ckpt_milestone, one).is_file() for one in (folder, other))
    if there and not here:
        advice = "leave out" if args.use_diff else "add"
        raise InputError(f"{advice} --use_diff: {other} has the checkpoint {args.ckpt_milestone}, {folder} has not.")


def newest_described(folder: Path) -> Description | None:
    """What the newest checkpoint that can be read says about itself."""
    for path in reversed(checkpoint.checkpoints(folder)):
        with contextlib.suppress(InputError):  # `find_resume` tells which are damaged
            return describe(path / checkpoint.WEIGHTS)
    return None


def run(args, architecture: Architecture) -> None:
    """Dry run, evaluation, or training followed by evaluation."""
    folder = run_folder(args)
    torch.manual_seed(args.seed)
    model = architecture.build(
        diffusion_weight=args.diffusion_weight,
        freeze_backbone=args.freeze_backbone,
        loss_weight=args.loss_weight,
        gradient_checkpointing=args.gradient_checkpointing,
    )
    accelerator = make_accelerator(args, folder)
    start_logging(main=accelerator.is_main_process)
    if args.dry_run:
        dry_run(args, model, accelerator)
        return
    if not args.eval:
        finished = start_training(args, accelerator, model, architecture, folder)
        accelerator.free_memory()
        if not finished:
            accelerator.end_training()
            raise Stopped("a signal")
    if not args.no_eval:
        start_evaluation(args, accelerator, model, architecture, folder)
    accelerator.end_training()


def start_training(args, accelerator: Accelerator, model, architecture: Architecture, folder: Path) -> bool:
    """Open the data, find the checkpoint to resume from, and train; False if a signal interrupted the training."""
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"--backbone {args.backbone} has no weights to train; add --use_diff or --eval.")
    train_set, valid_set = open_split(args, "train"), open_split(args, "valid")
    settings = training_settings(args)
    steps = total_steps(len(train_set), settings, accelerator.num_processes)
    checkpoints = folder / "checkpoints"
    metadata = {
        "architecture": architecture.to_metadata(),
        "dataset": args.dataset,
        "source": describe_source(train_set.source, model),
        "course": {name: getattr(args, name) for name in COURSE} | {"processes": accelerator.num_processes},
        "length": {name: getattr(args, name) for name in LENGTH},
    }
    resume = find_resume(args, checkpoints, metadata)
    if resume is None:
        start_backbone(args, model, architecture)
    writable_folder(checkpoints, "the checkpoints")
    with alone_in(folder, accelerator, "wait for its end, stop it, or name another run with --exp_note"):
        if accelerator.is_main_process:
            with contextlib.suppress(OSError):
                (folder / MARKER).unlink()
            with replacing(folder / "params.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(plain_settings(args), sort_keys=False))
        start_logging(folder / "run.log", accelerator.is_main_process)
        length = describe_length(steps, settings)
        LOG.info("training %s on %d sequences for %s", folder.name, len(train_set), length)
        where = f"{accelerator.num_processes} process(es), {accelerator.device}"
        start = resume or "the beginning"
        LOG.info("on %s, --mixed_precision %s, from %s", where, args.mixed_precision, start)
        warn_if_emulated("--mixed_precision", args.mixed_precision, accelerator.device)
        start_trackers(args, accelerator, folder.name)
        accelerator.wait_for_everyone()
        with patience(TRAINING_PATIENCE, PATIENCE):
            return train(accelerator, model, train_set, valid_set, settings, folder, metadata, resume)


def start_trackers(args, accelerator: Accelerator, name: str) -> None:
    """Tell the trackers, if any, what is about to be trained."""
    settings = plain_settings(args)
    accelerator.init_trackers(
        "diffcast",
        {name: value if isinstance(value, int | float) else str(value) for name, value in settings.items()},
        {"wandb": {"mode": args.wandb_state, "name": name}} if "wandb" in args.log_with else {},
    )


def start_evaluation(args, accelerator: Accelerator, model, architecture: Architecture, folder: Path) -> None:
    """Load the weights to evaluate, which after a training are its best, and score them on the test split."""
    milestone = args.ckpt_milestone if args.eval else "best"
    label, origin = args.backbone, None
    if milestone:
        weights = checkpoint.find_weights(milestone, folder / "checkpoints")
        label = weights.parent.name if weights.name == checkpoint.WEIGHTS else weights.stem
        origin = {"label": label, "sha256": sha256(weights)}
        load_forecaster_weights(model, architecture, weights)
        if sha256(weights) != origin["sha256"]:
            raise InputError(f"{weights} was replaced by a training while it was read; repeat the command.")
    test_set = open_split(args, "test")
    if milestone:
        refuse_other_data(weights, describe_source(test_set.source, model))
    settings = evaluation_settings(args)
    dressed = None
    if args.dress:
        dressed = dress(model, open_split(args, "train"), settings.members, args.seed, accelerator.device)
    LOG.info("evaluating %s on the test split of %s", milestone or label, test_set.source.name)
    if args.use_diff:
        warn_if_emulated("--forecast_precision", args.forecast_precision, accelerator.device)
    name = ("diffcast_" if args.use_diff else "") + args.backbone.replace(":", ".")
    about = {"about": provenance(), "settings": plain_settings(args), "checkpoint": origin}
    evaluate(accelerator, model, test_set, settings, folder / f"evaluation_{label}", name, about, dressed)


def refuse_other_data(weights: Path, found: dict) -> None:
    """Raise `InputError` if weights say that they were trained on frames in other units than those found."""
    if differences := data_differences(describe(weights).metadata.get("source"), found):
        raise InputError(
            f"checkpoint {weights} was trained on other data than --data_path holds (checkpoint / data): "
            f"{'; '.join(differences)}."
        )


def start_backbone(args, model, architecture: Architecture) -> None:
    """Give DiffCast's backbone the weights of its own run, if asked to."""
    if args.backbone_ckpt:
        load_forecaster_weights(model.backbone, replace(architecture, use_diff=False), Path(args.backbone_ckpt))
    elif args.freeze_backbone:
        raise InputError("--freeze_backbone keeps random weights without --backbone_ckpt; give the backbone's weights.")


def find_resume(args, checkpoints: Path, wanted: dict) -> Path | None:
    """The checkpoint folder to go on from; None: start from the beginning.

    Checked is what `arguments.settle` cannot know: data, processes, and the precision that auto stands for here.
    """
    found = checkpoint.checkpoints(checkpoints)
    if args.resume is None:
        if found:
            raise InputError(
                f"{checkpoints.parent} holds a training already, up to step {checkpoint.step_of(found[-1])}: go on "
                "with --resume, or name another run with --exp_note."
            )
        return None
    path = checkpoint.newest_whole(checkpoints) if args.resume == "auto" else Path(args.resume)
    if path is None:
        return None
    metadata = load_metadata(path / checkpoint.WEIGHTS)
    earlier, course = metadata.get("course", {}), wanted["course"]
    differing = [name for name in ("mixed_precision", "processes") if earlier.get(name) != course[name]]
    differences = [f"{name} {earlier.get(name)} / {course[name]}" for name in differing]
    differences += data_differences(metadata.get("source"), wanted["source"])
    if differences:
        raise InputError(
            f"{path} cannot be resumed with other settings (checkpoint / command line): {'; '.join(differences)}."
        )
    return path


def dry_run(args, model, accelerator: Accelerator) -> None:
    """Print what a training with these arguments would be."""
    LOG.info("%s", yaml.safe_dump(plain_settings(args), sort_keys=False).rstrip())
    rows = []
    for split in ("train", "valid", "test"):
        data = open_split(args, split)
        rows.append([f"{split} split", f"{len(data):,} sequences of {len(data.event_ids):,} events"])
        if split == "train":
            settings = training_settings(args)
            length = describe_length(total_steps(len(data), settings, accelerator.num_processes), settings)
            rows.append(["training", length])
    rows.append(["device", f"{accelerator.num_processes} x {accelerator.device.type}"])
    warn_if_emulated("--mixed_precision", args.mixed_precision, accelerator.device)
    LOG.info(
        "\n%s", format_table(["", ""], rows + summarise(model, training_settings(args), evaluation_settings(args)))
    )


def run_folder(args) -> Path:
    """Where the run's results go."""
    name = ("Diff" if args.use_diff else "Single") + args.backbone.replace(":", ".") + f"_{args.dataset}"
    return Path("Exps") / args.exp_dir / (f"{name}_{args.exp_note}" if args.exp_note else name)


def make_accelerator(args, folder: Path) -> Accelerator:
    """Accelerate's view of devices, processes, precision and trackers; GPUs may multiply float32 in TF32.

    From here on `args.mixed_precision` is what the device computes in, not auto.
    """
    torch.set_float32_matmul_precision("high")
    state = PartialState(parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    args.mixed_precision = training_precision(args.mixed_precision, state.device)
    try:
        return Accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.grad_acc_step,
            log_with=args.log_with or None,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
        )
    except ValueError as error:
        raise InputError(f"--mixed_precision {args.mixed_precision} is not possible here: {error}.") from None


def open_split(args, split: str):
    """One split of the data set; raises `InputError` that says how to get data if they have no place."""
    path = args.data_path or Path("data") / args.dataset
    if args.data_path is None and args.dataset != "synthetic" and not path.exists():
        raise InputError(
            f"there is no {path}: name the data with --data_path, get SEVIR with python -m dataset download sevir "
            "--out data/sevir, or try --dataset synthetic, which generates storms."
        )
    return build_dataset(
        args.dataset,
        split,
        path,
        tuple(args.img_size),
        args.seq_len,
        args.stride,
        args.split,
        args.packed_path,
        args.scale,
    )


if __name__ == "__main__":
    start_missing_processes()
    main()
