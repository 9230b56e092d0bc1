"""Start of a training from a checkpoint or a backbone's weights."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from diffcast.evaluation.results import data_differences
from diffcast.forecaster import Architecture, load_forecaster_weights, start_from
from utils import checkpoint
from utils.errors import InputError
from utils.weights import load_metadata


def find_resume(asked: str | None, checkpoints: Path, wanted: dict) -> Path | None:
    """Find the checkpoint folder to continue from. None means a new training.

    `asked` is the option --resume: "auto", a checkpoint folder, or None. `wanted` is the metadata that the training
    would write. Raises `InputError` for a training of other data, processes or precision, which the options do not
    determine, and if there is a training already although nobody asked to continue it.
    """
    found = checkpoint.checkpoints(checkpoints)
    if asked is None:
        if found:
            raise InputError(
                f"{checkpoints.parent} holds a training already, up to step {checkpoint.step_of(found[-1])}: continue "
                "with --resume, or name another run with --exp_note."
            )
        return None
    path = checkpoint.newest_whole(checkpoints) if asked == "auto" else Path(asked)
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


def start_weights(
    model: nn.Module, architecture: Architecture, complete: str | None, backbone: str | None, frozen: bool
) -> None:
    """Fill a model, or the backbone of a DiffCast, from a file of weights, if there is one.

    Raises `InputError` if the backbone is to stay frozen and has no weights.
    """
    if complete:
        start_from(model, architecture, Path(complete))
    elif backbone:
        load_forecaster_weights(model.backbone, replace(architecture, use_diff=False), Path(backbone))
    elif frozen:
        raise InputError("--freeze_backbone keeps random weights without --backbone_ckpt; give the backbone's weights.")
