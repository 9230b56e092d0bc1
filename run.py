"""Train or evaluate a forecaster.

    python run.py --backbone simvp                        train a backbone, then score it on the test split
    python run.py --backbone simvp --use_diff             train DiffCast around it, end to end
    accelerate launch run.py --use_diff                   the same on all GPUs
    python run.py --eval --ckpt_milestone best.safetensors    the file determines network and data set
    python run.py @resources/demo.args                    options from a file

Results appear in Exps/<exp_dir>/<Diff|Single><backbone>_<dataset>[_<exp_note>]. SIGTERM, SIGINT and SIGUSR1 stop a run,
and the same command with --resume continues a training. The exit status is 0 after success, 2 after a mistake, which
is explained in one sentence, and 75 if a signal stopped the run. docs/training.md describes all of this.
"""

import contextlib
import logging
from datetime import timedelta
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration, parse_flag_from_env

from dataset.sequences import Sequences
from diffcast.commandline import arguments
from diffcast.commandline.completion import COURSE, LENGTH
from diffcast.commandline.settings import RunSettings, read
from diffcast.commandline.summary import summarise
from diffcast.evaluation.loop import evaluate
from diffcast.evaluation.results import data_differences, describe_source
from diffcast.forecaster import AUTO, describe, load_forecaster_weights
from diffcast.forecasting.dressed import dress
from diffcast.forecasting.steps import check_source
from diffcast.precision import training_precision, warn_if_emulated
from diffcast.processes import (
    alone_in,
    ending_loaders,
    patience,
    reporting_lost_processes,
    start_missing_processes,
)
from diffcast.training.loop import train
from diffcast.training.resume import find_resume, start_weights
from diffcast.training.scale import measured_scale
from diffcast.training.settings import describe_length, total_steps
from utils import checkpoint
from utils.errors import InputError, exit_on_input_error
from utils.files import replacing, writable_folder
from utils.log import format_table, start_logging
from utils.preemption import MARKER, Stopped, exit_when_stopped
from utils.provenance import provenance, sha256

LOG = logging.getLogger("run")
PATIENCE = timedelta(hours=2)  # of processes with each other: one may have a batch of forecasts more than another
TRAINING_PATIENCE = timedelta(minutes=10)  # while they train, where their work is the same


def build_parser():
    """Build the command line, see `diffcast.commandline.arguments`."""
    return arguments.build_parser(__doc__)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    given = vars(build_parser().parse_args(argv))
    with ending_loaders(), exit_on_input_error():
        settings = read(given)
        purpose = settings.purpose
        same = purpose.eval or purpose.dry_run or purpose.resume == "auto"
        advice = "the same command continues" if same else "the same command with --resume continues"
        marker = None if purpose.dry_run or purpose.eval else settings.folder / MARKER
        with exit_when_stopped(advice, marker), reporting_lost_processes(advice):
            run(settings)


def run(settings: RunSettings) -> None:
    """Do what the settings ask for: dry run, training or evaluation."""
    torch.manual_seed(settings.training.seed)
    model = settings.architecture.build(**settings.training.of_the_loss())
    accelerator = make_accelerator(settings)
    settings = settings.computing_in(accelerator.mixed_precision)
    start_logging(main=accelerator.is_main_process)
    if settings.purpose.dry_run:
        dry_run(settings, model, accelerator)
        return
    if not settings.purpose.eval:
        settings, finished = start_training(settings, accelerator, model)
        accelerator.free_memory()
        if not finished:
            accelerator.end_training()
            raise Stopped("a signal")
    if not settings.purpose.no_eval:
        start_evaluation(settings, accelerator, model)
    accelerator.end_training()


def make_accelerator(settings: RunSettings) -> Accelerator:
    """Set up Accelerate's devices, processes, precision and trackers.

    GPUs may multiply float32 in TF32.
    """
    torch.set_float32_matmul_precision("high")
    state = PartialState(parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    precision, folder = training_precision(settings.training.mixed_precision, state.device), settings.folder
    try:
        return Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=settings.training.grad_acc_step,
            log_with=list(settings.purpose.log_with) or None,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
        )
    except ValueError as error:
        raise InputError(f"--mixed_precision {precision} is not possible here: {error}.") from None


def start_training(settings: RunSettings, accelerator: Accelerator, model) -> tuple[RunSettings, bool]:
    """Open the data, find the checkpoint to resume from, and train.

    Returns the settings, with a residual scale that was measured, and whether the training has come to its end. False
    means that a signal interrupted it.
    """
    if not any(p.requires_grad for p in model.parameters()):
        backbone = settings.architecture.backbone
        raise InputError(f"--backbone {backbone} has no weights to train; add --use_diff or --eval.")
    training, purpose, folder = settings.training, settings.purpose, settings.folder
    train_set, valid_set = settings.data.open("train"), settings.data.open("valid")
    check_source(settings.evaluation.of_pysteps, train_set.source)
    steps = total_steps(len(train_set), training, accelerator.num_processes)
    metadata = training_metadata(settings, describe_source(train_set.source, model), accelerator.num_processes)
    resume = find_resume(purpose.resume, folder / "checkpoints", metadata)
    if resume is None:
        initial = purpose.init_ckpt, purpose.backbone_ckpt
        start_weights(model, settings.architecture, *initial, training.freeze_backbone)
    writable_folder(folder / "checkpoints", "the checkpoints")
    with alone_in(folder, accelerator, "wait for its end, stop it, or name another run with --exp_note"):
        if accelerator.is_main_process:
            with contextlib.suppress(OSError):
                (folder / MARKER).unlink()
        start_logging(folder / "run.log", accelerator.is_main_process)
        if settings.architecture.residual_scale == AUTO:
            trained = purpose.backbone_ckpt is not None
            scale = measured_scale(accelerator, model, trained, train_set, training.batch_size, training.seed)
            settings, model.residual_scale = settings.with_residual_scale(scale), scale
            metadata |= {"architecture": settings.architecture.to_metadata()}
        if accelerator.is_main_process:
            with replacing(folder / "params.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(settings.options(), sort_keys=False))
        length = describe_length(steps, training)
        LOG.info("training %s on %d sequences for %s", folder.name, len(train_set), length)
        where = f"{accelerator.num_processes} process(es), {accelerator.device}"
        start = resume or "the beginning"
        LOG.info("on %s, --mixed_precision %s, from %s", where, training.mixed_precision, start)
        warn_if_emulated("--mixed_precision", training.mixed_precision, accelerator.device)
        start_trackers(settings, accelerator)
        accelerator.wait_for_everyone()
        with patience(TRAINING_PATIENCE, PATIENCE):
            finished = train(accelerator, model, train_set, valid_set, training, folder, metadata, resume)
    return settings, finished


def training_metadata(settings: RunSettings, source: dict, processes: int) -> dict:
    """Describe a training as its checkpoints do."""
    options = settings.options()
    return {
        "architecture": settings.architecture.to_metadata(),
        "dataset": settings.data.dataset,
        "source": source,
        "course": {name: options[name] for name in COURSE} | {"processes": processes},
        "length": {name: options[name] for name in LENGTH},
    }


def start_trackers(settings: RunSettings, accelerator: Accelerator) -> None:
    """Send the options of the run to its trackers."""
    purpose = settings.purpose
    options = {name: v if isinstance(v, int | float) else str(v) for name, v in settings.options().items()}
    wandb = {"wandb": {"mode": purpose.wandb_state, "name": settings.folder.name}}
    accelerator.init_trackers("diffcast", options, wandb if "wandb" in purpose.log_with else {})


def start_evaluation(settings: RunSettings, accelerator: Accelerator, model) -> None:
    """Load the weights to evaluate and score them on the test split.

    After a training these are its best weights.
    """
    architecture, evaluation, folder = settings.architecture, settings.evaluation, settings.folder
    milestone = settings.purpose.ckpt_milestone if settings.purpose.eval else "best"
    label, origin = architecture.backbone, None
    if milestone:
        weights = checkpoint.find_weights(milestone, folder / "checkpoints")
        label = weights.parent.name if weights.name == checkpoint.WEIGHTS else weights.stem
        origin = {"label": label, "sha256": sha256(weights)}
        load_forecaster_weights(model, architecture, weights)
        if sha256(weights) != origin["sha256"]:
            raise InputError(f"{weights} was replaced by a training while it was read; repeat the command.")
    test_set = settings.data.open("test")
    if milestone:
        refuse_other_data(weights, describe_source(test_set.source, model))
    dressed = None
    if evaluation.dress:
        dressed = dress(model, settings.data.open("train"), evaluation.members, evaluation.seed, accelerator.device)
    LOG.info("evaluating %s on the test split of %s", milestone or label, test_set.source.name)
    if architecture.use_diff:
        warn_if_emulated("--forecast_precision", evaluation.forecast_precision, accelerator.device)
    about = {"about": provenance(), "settings": settings.options(), "checkpoint": origin}
    results, valid_set = folder / f"evaluation_{label}", validation_of_ensembles(settings)
    evaluate(accelerator, model, test_set, evaluation, results, architecture.label, about, dressed, valid_set)


def validation_of_ensembles(settings: RunSettings) -> Sequences | None:
    """Open the validation split, which chooses the probability of warnings, if there are ensembles and such a split."""
    if settings.evaluation.members == 1:
        return None
    try:
        return settings.data.open("valid")
    except InputError as error:
        LOG.warning("csi_warning of ensembles is left out, as it needs a validation split: %s", error)
        return None


def refuse_other_data(weights: Path, found: dict) -> None:
    """Raise `InputError` if weights were trained on another kind of frames.

    Units, range and interval must agree with those that were found.
    """
    if differences := data_differences(describe(weights).metadata.get("source"), found):
        raise InputError(
            f"checkpoint {weights} was trained on other data than --data_path holds (checkpoint / data): "
            f"{'; '.join(differences)}."
        )


def dry_run(settings: RunSettings, model, accelerator: Accelerator) -> None:
    """Print what a training with these settings would be."""
    LOG.info("%s", yaml.safe_dump(settings.options(), sort_keys=False).rstrip())
    training, rows = settings.training, []
    for split in ("train", "valid", "test"):
        data = settings.data.open(split)
        rows.append([f"{split} split", f"{len(data):,} sequences of {len(data.event_ids):,} events"])
        if split == "train":
            steps = total_steps(len(data), training, accelerator.num_processes)
            rows.append(["training", describe_length(steps, training)])
    if settings.architecture.residual_scale == AUTO:
        trend = "of the trained backbone" if settings.purpose.backbone_ckpt else "of persistence"
        rows.append(["residual_scale", f"measured before the training, from the residual {trend}"])
    rows.append(["device", f"{accelerator.num_processes} x {accelerator.device.type}"])
    warn_if_emulated("--mixed_precision", training.mixed_precision, accelerator.device)
    LOG.info("\n%s", format_table(["", ""], rows + summarise(model, training, settings.evaluation)))


if __name__ == "__main__":
    start_missing_processes()
    main()
