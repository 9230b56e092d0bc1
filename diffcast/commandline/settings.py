"""Settings of a run, built once from the command line."""

from dataclasses import MISSING, Field, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import yaml

from dataset import DATASETS, build_dataset
from dataset.sequences import Sequences
from diffcast.commandline.completion import completed, find_described
from diffcast.evaluation.loop import EvaluationSettings
from diffcast.forecaster import Architecture
from diffcast.forecasting.forecasts import BASELINES
from diffcast.training.settings import TrainingSettings
from models import SIZES
from utils.errors import InputError
from utils.options import build, check_values, option, options_of


@dataclass(frozen=True)
class Purpose:
    """What a run does, where it starts, and where its results go.

    Raises `InputError` for options that contradict each other.
    """

    eval: bool = option(False, "only evaluate, on the test split")
    ckpt_milestone: str | None = option(
        None,
        "weights to evaluate: file, folder, step of the run, best or latest. They determine network and data set",
        metavar="CHECKPOINT",
    )
    resume: str | None = option(
        None,
        "continue a training from its latest intact checkpoint, if there is one, or from the given one",
        metavar="CHECKPOINT",
        nargs="?",
        const="auto",
    )
    no_eval: bool = option(False, "skip the evaluation that follows a training")
    dry_run: bool = option(False, "print settings, number of sequences, parameters, GFLOPs and memory, then stop")
    backbone_ckpt: str | None = option(
        None, "initial weights of DiffCast's backbone, with --use_diff", metavar="CHECKPOINT"
    )
    init_ckpt: str | None = option(
        None,
        "initial weights of the complete network, ours or official. --objective, --img_size and "
        "--residual_scale may differ from those of the checkpoint",
        metavar="CHECKPOINT",
    )
    exp_dir: str = option("basic_exps", "folder of the run inside Exps, or an absolute path")
    exp_note: str | None = option(None, "text to append to the name of the run")
    log_with: tuple[str, ...] = option((), "trackers to use", nargs="*", choices=("tensorboard", "wandb"))
    wandb_state: str = option(
        "disabled", "mode of the wandb tracker", choices=("disabled", "online", "offline"), rare=True
    )

    def __post_init__(self):
        if self.ckpt_milestone and not self.eval:
            raise InputError(
                "--ckpt_milestone names weights to evaluate: add --eval, or use --resume to continue a training."
            )
        for other in ("no_eval", "resume"):
            if self.eval and getattr(self, other):
                raise InputError(f"--eval evaluates and does not train, so --{other} does not fit; give one of them.")
        if self.init_ckpt and (self.eval or self.backbone_ckpt):
            other = "eval" if self.eval else "backbone_ckpt"
            raise InputError(
                f"--init_ckpt starts a training with all weights, so --{other} does not fit; leave it out."
            )
        if self.exp_note and Path(self.exp_note).name != self.exp_note:
            raise InputError(f"--exp_note {self.exp_note} becomes part of a folder's name; leave out the slashes.")
        if "wandb" in self.log_with and self.wandb_state == "disabled":
            object.__setattr__(self, "wandb_state", "online")
        if self.wandb_state != "disabled" and "wandb" not in self.log_with:
            object.__setattr__(self, "log_with", (*self.log_with, "wandb"))


@dataclass(frozen=True)
class DataSettings:
    """Which frames to train and evaluate on.

    Raises `InputError` for impossible values.
    """

    dataset: str = option(
        "sevir",
        "data set. frames is your own radar, see docs/data.md, and synthetic storms are generated on first use",
        choices=tuple(DATASETS),
    )
    data_path: Path | None = option(None, "folder or file of the data set. The default is data/<dataset>")
    crop: int | None = option(
        None,
        "side in pixels of crops of frames at native resolution, in place of --img_size. Training draws random crops, "
        "and evaluation takes tiles that cover the frames",
        metavar="PIXELS",
        at_least=1,
    )
    img_size: tuple[int, ...] = option(
        (128,),
        "side of a frame in pixels, or its height and width. Frames of other sizes are resized",
        metavar="PIXELS",
        at_least=1,
    )
    crop_by: str = option(
        "rain",
        "what makes a random crop likely: its wet pixels, or every valid pixel alike",
        choices=("rain", "uniform"),
        rare=True,
    )
    seq_len: int = option(25, "number of frames of a sequence, --frames_in + --frames_out", at_least=1, rare=True)
    split: str = option(
        "official", "scheme of dates and windows that splits SEVIR", choices=("official", "benchmark"), rare=True
    )
    stride: int | None = option(
        None, "number of frames between windows. The default is that of the split", at_least=1, rare=True
    )
    scale: float | None = option(
        None, "dBZ of the highest stored value of shanghai and cikm. The default is 90, as in the paper", rare=True
    )
    packed_path: Path | None = option(None, "folder of the packed cache. The default is <data_path>/packed", rare=True)
    img_channel: int = option(1, "number of channels of a frame. All data sets have one", at_least=1, rare=True)

    def __post_init__(self):
        check_values(self)
        if len(self.img_size) > 2:
            raise InputError(f"--img_size takes one or two numbers, not {' '.join(map(str, self.img_size))}.")
        if self.crop and set(self.img_size) != {self.crop}:
            raise InputError(
                f"--crop {self.crop} replaces --img_size {' '.join(map(str, self.img_size))}; leave --img_size out."
            )
        if self.img_channel != 1:
            raise InputError(f"--img_channel {self.img_channel}: the data sets have one channel; leave it at 1.")

    def open(self, split: str) -> Sequences:
        """Open the train, valid or test split.

        Raises `InputError` with advice how to get data if there are none.
        """
        path = self.data_path or Path("data") / self.dataset
        if self.data_path is None and self.dataset != "synthetic" and not path.exists():
            raise InputError(
                f"there is no {path}: name the data with --data_path, get SEVIR with python -m dataset download sevir "
                "--out data/sevir, or try --dataset synthetic, which generates storms."
            )
        return build_dataset(
            self.dataset,
            split,
            path,
            self.img_size,
            self.seq_len,
            self.stride,
            self.split,
            self.packed_path,
            self.scale,
            self.crop,
            self.crop_by,
        )


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run."""

    purpose: Purpose
    architecture: Architecture
    data: DataSettings
    training: TrainingSettings
    evaluation: EvaluationSettings

    @property
    def folder(self) -> Path:
        """Where the results of the run go."""
        return folder_of(self.options())

    def options(self) -> dict:
        """All options by name, JSON-ready."""
        found = {}
        for part in (self.purpose, self.architecture, self.data, self.training, self.evaluation):
            found |= {one.name: getattr(part, one.name) for one in options_of(part)}
        found |= {"img_size": self.architecture.frame_shape[1:]}
        return {name: _plain(value) for name, value in found.items()}

    def computing_in(self, mixed_precision: str) -> "RunSettings":
        """Replace `mixed_precision` by what the device computes in, which `auto` leaves open."""
        return replace(self, training=replace(self.training, mixed_precision=mixed_precision))

    def with_residual_scale(self, scale: float) -> "RunSettings":
        """Replace `residual_scale` by what was measured, which `auto` leaves open."""
        return replace(self, architecture=replace(self.architecture, residual_scale=scale))


PARTS = {
    "purpose": Purpose,
    "architecture": Architecture,
    "data": DataSettings,
    "training": TrainingSettings,
    "evaluation": EvaluationSettings,
}


def read(given: dict) -> RunSettings:
    """Build the settings from the options that the user gave, by name.

    What the user left open comes from the checkpoint that an option names, and otherwise from the defaults. Raises
    `InputError` for options that are impossible, contradict each other or contradict the checkpoint.
    """
    given = _normalised(given)
    options = _defaults() | given
    build(Purpose, options)  # contradictions are found before any checkpoint is read
    if found := find_described(options, given, folder_of):
        options |= completed(options, given, *found)
    if "training_steps" in given and "epochs" not in given:
        options["epochs"] = 0
    parts = {name: build(kind, options) for name, kind in PARTS.items() if kind is not Architecture}
    settings = RunSettings(architecture=Architecture.of(options), **parts)
    _check_together(settings)
    return settings


def folder_of(options: dict) -> Path:
    """Return the folder of a run with these options."""
    backbone = options["backbone"].replace(":", ".")
    name = f"{'Diff' if options['use_diff'] else 'Single'}{backbone}_{options['dataset']}"
    return Path("Exps") / options["exp_dir"] / (f"{name}_{options['exp_note']}" if options["exp_note"] else name)


def _normalised(given: dict) -> dict:
    """Convert options from the form of the command line."""
    changed = {}
    if "backbone_options" in given:
        changed["backbone_options"] = parse_backbone_options(given["backbone_options"])
    if len(given.get("img_size", ())) == 1:
        changed["img_size"] = given["img_size"] * 2
    if "crop" in given and "img_size" not in given:
        changed["img_size"] = [given["crop"]] * 2
    return given | changed


def parse_backbone_options(words: list[str]) -> dict:
    """Parse `NAME=VALUE` strings to a dictionary.

    Values are read as YAML. Raises `InputError` for other strings.
    """
    parsed = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name.isidentifier() and equals):
            raise InputError(f"--backbone_options {word!r} does not have the form NAME=VALUE.")
        if name in ("name", *SIZES):
            raise InputError(f"--backbone_options {word!r}: this follows from the other options; leave it out.")
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--backbone_options {word!r}: its value is no number, list or word.") from None
    return parsed


def _defaults() -> dict:
    found = {one.name: _default(one) for kind in PARTS.values() for one in options_of(kind)}
    return found | {"img_size": DataSettings.img_size * 2}


def _default(one: Field):
    return one.default_factory() if one.default is MISSING else one.default


def _plain(value):
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _check_together(settings: RunSettings) -> None:
    """Raise `InputError` for settings that do not fit each other."""
    purpose, architecture, data = settings.purpose, settings.architecture, settings.data
    frames_in, frames_out = architecture.frames_in, architecture.frames_out
    if architecture.use_diff:
        settings.evaluation.of_objective(architecture.objective)
    if frames_in + frames_out != data.seq_len:
        raise InputError(
            f"--frames_in {frames_in} + --frames_out {frames_out} is not --seq_len {data.seq_len}; make them add up."
        )
    for name, value in {
        "backbone_ckpt": purpose.backbone_ckpt,
        "freeze_backbone": settings.training.freeze_backbone,
    }.items():
        if value and not architecture.use_diff:
            raise InputError(f"--{name} belongs to --use_diff: give both or neither.")
    if (
        purpose.eval
        and not purpose.ckpt_milestone
        and (architecture.use_diff or architecture.backbone not in BASELINES)
    ):
        raise InputError(
            "--eval needs --ckpt_milestone: a checkpoint file or folder, a step of the run, best or latest."
        )
    evaluation = settings.evaluation
    if evaluation.members > 1 and not (architecture.use_diff or evaluation.dress or "steps" in evaluation.baselines):
        raise InputError(
            f"--members {evaluation.members}: {architecture.backbone} alone makes one forecast; add --use_diff, "
            "--dress or --baselines steps, or leave --members out."
        )
    for tracker in purpose.log_with:
        if find_spec(tracker) is None:
            raise InputError(f"--log_with {tracker} needs the package {tracker}: pip install {tracker}.")
