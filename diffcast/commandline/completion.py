"""Options that a checkpoint determines, where the user leaves them open."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from dataset import DATASETS, SCALED
from diffcast.described import Description
from diffcast.forecaster import AUTO, describe
from utils import checkpoint
from utils.errors import InputError

# What a resumed training must have in common with the interrupted one, so that it is the same training.
COURSE = (
    *("seed", "lr", "lr_beta1", "lr_beta2", "l2_norm", "scheduler", "warmup_steps", "ema_rate", "mixed_precision"),
    *("batch_size", "grad_acc_step", "diffusion_weight", "loss_weight", "freeze_backbone"),
    *("particles", "crps_scales", "crps_fairness"),
    *("dataset", "split", "stride", "augment", "crop", "crop_by"),
)
# What a resumed training takes over unless the user says otherwise.
LENGTH = (
    *("epochs", "training_steps", "valid_every", "valid_sequences", "early_stop", "max_bad_steps"),
    "keep_checkpoints",
)
DATA = ("dataset", "split", "scale", "crop")
BACKBONE = ("backbone", "backbone_options", "img_channel", "img_size", "frames_in", "frames_out")
IN_FOLDER_NAME = {"backbone", "use_diff", "dataset"}


def find_described(
    options: dict, given: dict, folder_of: Callable[[dict], Path]
) -> tuple[Description, str, set[str]] | None:
    """Find the checkpoint that determines options, if there is one.

    Returns what the checkpoint says about itself, the option that named it, and the options that must agree with it.
    """
    folder = folder_of(options) / "checkpoints"
    milestone, resume = options["ckpt_milestone"], options["resume"]
    agreeing = set(given)
    if options["eval"] and milestone:
        if checkpoint.is_name(milestone):
            agreeing |= IN_FOLDER_NAME
            _hint_at_use_diff(options, folder_of)
        return describe(checkpoint.find_weights(milestone, folder)), "ckpt_milestone", agreeing
    if resume == "auto":
        newest = _newest_described(folder)
        if newest is not None:
            return newest, "resume", agreeing | IN_FOLDER_NAME
    elif resume is not None:
        path = Path(resume)
        checkpoint.existing(path / checkpoint.TRAINING, f"--resume {path}")
        checkpoint.verify(path)
        return describe(path / checkpoint.WEIGHTS), "resume", agreeing
    if options["init_ckpt"]:
        return describe(checkpoint.existing(Path(options["init_ckpt"]), "--init_ckpt")), "init_ckpt", agreeing
    if options["backbone_ckpt"] and options["use_diff"]:
        return (
            describe(checkpoint.existing(Path(options["backbone_ckpt"]), "--backbone_ckpt")),
            "backbone_ckpt",
            agreeing,
        )
    return None


def _hint_at_use_diff(options: dict, folder_of: Callable[[dict], Path]) -> None:
    """Raise `InputError` if --use_diff names the wrong one of two runs."""
    other = options | {"use_diff": not options["use_diff"]}
    folder, sibling = (folder_of(one) / "checkpoints" for one in (options, other))
    here, there = (checkpoint.locate(options["ckpt_milestone"], one).is_file() for one in (folder, sibling))
    if there and not here:
        advice = "leave out" if options["use_diff"] else "add"
        raise InputError(
            f"{advice} --use_diff: {sibling} has the checkpoint {options['ckpt_milestone']}, {folder} has not."
        )


def _newest_described(folder: Path) -> Description | None:
    """Describe the newest checkpoint that can be read."""
    for path in reversed(checkpoint.checkpoints(folder)):
        with contextlib.suppress(InputError):  # `find_resume` reports the damaged ones
            return describe(path / checkpoint.WEIGHTS)
    return None


def completed(options: dict, given: dict, described: Description, use: str, agreeing: set[str]) -> dict:
    """Return the options that a checkpoint determines.

    `use` is the option that named the checkpoint. Raises `InputError` where the user and the checkpoint disagree.
    """
    known = _known(described, use, options, given)
    if use == "ckpt_milestone":  # other data of the same kind may be forecast, see `refuse_other_data` of run.py
        other = "dataset" in given and options["dataset"] != known.get("dataset")
        own = DATA if other else given.keys() & DATA
        known = {name: value for name, value in known.items() if name not in own}
    if options["residual_scale"] == AUTO:  # which the checkpoint has measured
        agreeing = agreeing - {"residual_scale"}
    found = described.agreed({name: options[name] for name in agreeing & options.keys()}, known)
    if use == "resume":
        found |= _length(described, given)
    if "seq_len" not in given:
        lengths = options | found
        found["seq_len"] = lengths["frames_in"] + lengths["frames_out"]
    return found


def _known(described: Description, use: str, options: dict, given: dict) -> dict:
    """Return the options that a checkpoint determines for a use."""
    network, metadata = described.network, described.metadata
    if use == "backbone_ckpt":
        if network["use_diff"]:
            raise InputError(f"--backbone_ckpt {described.path} holds a DiffCast; name weights of its backbone alone.")
        return {name: network[name] for name in BACKBONE if name in network}
    if use == "init_ckpt":  # another objective, frame size or scale has the same weights, or most of them
        free = {"objective"} | ({"img_size", "residual_scale"} & given.keys())
        return {name: value for name, value in network.items() if name not in free}
    course = {"dataset": metadata.get("dataset")} | _dictionary(metadata.get("course"))
    scale = _dictionary(metadata.get("source")).get("scale")
    course["scale"] = scale if course["dataset"] in SCALED else None
    names = (*COURSE, "scale") if use == "resume" else DATA
    if options["mixed_precision"] == "auto":  # compared by `find_resume`, which knows what auto is on this device
        course.pop("mixed_precision", None)
    found = {name: course.get(name) for name in names if _is_of_type(course.get(name), options[name])}
    for name, choices in {"dataset": DATASETS, "split": ("official", "benchmark")}.items():
        if name in found and found[name] not in choices:
            raise InputError(
                f"checkpoint {described.path} was trained with --{name} {found[name]}, which is unknown here."
            )
    return network | found


def _length(described: Description, given: dict) -> dict:
    """Return the length of a training where the user leaves it open.

    Number of steps and number of epochs belong together.
    """
    steps_and_epochs = {"epochs", "training_steps"}
    own = given.keys() | steps_and_epochs if given.keys() & steps_and_epochs else given.keys()
    found = _dictionary(described.metadata.get("length"))
    return {name: found[name] for name in LENGTH if name not in own and type(found.get(name)) is int}


def _is_of_type(value: object, example: object) -> bool:
    return type(value) is type(example) if example is not None else isinstance(value, int | float)


def _dictionary(value: object) -> dict:
    return value if isinstance(value, dict) else {}
