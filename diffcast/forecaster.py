"""Build forecasters, and fill them with weights of checkpoints."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from diffcast import official
from diffcast.described import Description
from diffcast.model import DiffCast
from diffcast.objectives import OBJECTIVES
from models import BACKBONES, build_backbone
from utils.errors import InputError
from utils.official import read_official
from utils.options import check_values, option
from utils.weights import load_weights

AUXILIARY_WEIGHT = 0.05  # standard deviation of new weights of auxiliary noise
# What constructors raise for settings that nobody chose.
_IMPOSSIBLE = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)


AUTO = "auto"  # of the residual scale: to be measured before the training, see `diffcast.training.scale`


def number_or_auto(text: str) -> float | str:
    """Parse a number, or the word that asks to measure it."""
    return AUTO if text == AUTO else float(text)


@dataclass(frozen=True)
class Architecture:
    """Settings that determine names and shapes of the weights.

    Defaults are the paper's. Raises `InputError` for impossible values.
    """

    backbone: str = option("phydnet", f"{', '.join(BACKBONES)}, or your own class as package.module:Class")
    use_diff: bool = option(False, "build DiffCast around the backbone")
    frame_shape: tuple[int, int, int] = (1, 128, 128)
    frames_in: int = option(5, "number of observed frames", at_least=1)
    frames_out: int = option(20, "number of forecast frames", at_least=1)
    backbone_options: dict = field(
        default_factory=dict,
        metadata={
            "help": "options of the backbone's constructor",
            "type": str,
            "nargs": "*",
            "metavar": "NAME=VALUE",
        },
    )
    dim: int = option(64, "width of the diffusion networks")
    dim_mults: tuple[int, ...] = option(
        (1, 2, 4, 8), "width of each level of the diffusion networks, in units of --dim"
    )
    segment_length: int | None = option(
        None, "number of frames that one diffusion run generates. The default is --frames_in", rare=True
    )
    timesteps: int = 1000
    residual_scale: float | str = option(
        1.0,
        "divide residuals by this. We recommend their standard deviation in [-1, 1] frames, which auto measures",
        type=number_or_auto,
        metavar="NUMBER",
    )
    objective: str = option(
        "diffusion",
        "what the generative network learns: to denoise, to make an ensemble in one evaluation by its CRPS, or both",
        choices=tuple(OBJECTIVES),
    )

    def __post_init__(self):
        check_values(self)
        if self.residual_scale == AUTO and not self.use_diff:
            object.__setattr__(self, "residual_scale", Architecture.residual_scale)

    def build(self, **training) -> nn.Module:
        """Build the forecaster with random weights.

        A residual scale that is still to be measured is 1. `training` are the options of `DiffCast` that shape its loss
        alone.
        """
        backbone = build_backbone(
            self.backbone, self.frame_shape, self.frames_in, self.frames_out, **self.backbone_options
        )
        if not self.use_diff:
            return backbone
        return DiffCast(
            backbone,
            self.dim,
            self.dim_mults,
            self.segment_length,
            self.timesteps,
            residual_scale=Architecture.residual_scale if self.residual_scale == AUTO else self.residual_scale,
            objective=self.objective,
            **training,
        )

    @property
    def label(self) -> str:
        """Name of the forecaster in tables and pictures."""
        return ("diffcast_" if self.use_diff else "") + self.backbone.replace(":", ".")

    def to_metadata(self) -> dict:
        """Return the fields, JSON-ready."""
        return asdict(self)

    def options(self) -> dict:
        """Return the fields by the names of the options of `run.py`."""
        channels, *img_size = self.frame_shape
        fields = {name: value for name, value in vars(self).items() if name != "frame_shape"}
        return {"img_channel": channels, "img_size": img_size} | fields

    @classmethod
    def of(cls, options: dict) -> "Architecture":
        """Build the architecture from options.

        The paper's values replace missing options, and other options are ignored.
        """
        shape = (options.get("img_channel", 1), *options.get("img_size", cls.frame_shape[1:]))
        fields = {name: options[name] for name in cls.__dataclass_fields__ if name in options}
        return cls(**fields | {"frame_shape": shape, "dim_mults": tuple(options.get("dim_mults", cls.dim_mults))})

    @classmethod
    def from_metadata(cls, metadata: dict) -> "Architecture":
        """Build the architecture in a checkpoint's metadata.

        Raises `InputError` if there is none.
        """
        try:
            stated = {"objective": cls.objective} | metadata["architecture"]  # which older files do not say
            fields = {name: stated[name] for name in cls.__dataclass_fields__}
            found = cls(**fields | {name: tuple(fields[name]) for name in ("frame_shape", "dim_mults")})
        except (KeyError, TypeError):
            raise InputError("the checkpoint does not say which network its weights belong to.") from None
        if not found._is_plausible():
            raise InputError("the checkpoint says that its weights belong to a network that cannot be.")
        return found

    def _is_plausible(self) -> bool:
        """Whether all fields have their types and possible values."""
        sizes = [*self.frame_shape, self.frames_in, self.frames_out, self.dim, *self.dim_mults, self.timesteps]
        sizes += [] if self.segment_length is None else [self.segment_length]
        return (
            isinstance(self.backbone, str)
            and isinstance(self.use_diff, bool)
            and isinstance(self.backbone_options, dict)
            and isinstance(self.residual_scale, float)
            and 0 < self.residual_scale <= 2
            and len(self.frame_shape) == 3
            and len(self.dim_mults) < 16
            and all(type(size) is int and 0 < size < 2**16 for size in sizes)
        )


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a forecaster to a device, with fast layouts of its convolutions."""
    model.to(device)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # A copy, because `contiguous` leaves the strides of a single channel as they are. Those of its gradient
            # would differ, and several processes would copy it at every step.
            weight = module.weight.data
            module.weight.data = torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)
    return model


def device_of(model: nn.Module) -> torch.device:
    """The device of a forecaster's weights, the processor if it has none, as advection alone."""
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def describe(path: Path) -> Description:
    """Describe a weights file by what it says about itself.

    Our files say everything, and official ones a part of their network.

    Nothing is imported on its word. Raises `InputError` for a network that its weights do not fit.
    """
    return _read(path)[1]


def load_forecaster(
    path: Path,  # our safetensors or an official checkpoint
    backbone: str | None = None,  # named by the user. A `module:Class` is imported only if it is named here
    img_size: int | None = None,
    frames_in: int | None = None,
    frames_out: int | None = None,
) -> tuple[nn.Module, Architecture]:
    """Build the forecaster that a file holds.

    The options add what an official checkpoint does not determine. Raises `InputError` if they contradict the file, or
    if the file does not say what it is.
    """
    weights, description = _read(path)
    given = {"backbone": backbone, "frames_in": frames_in, "frames_out": frames_out}
    given |= {"img_size": [img_size, img_size] if img_size else None}
    architecture = Architecture.of(description.agreed({name: value for name, value in given.items() if value}))
    model = architecture.build()
    _fill(model, weights, path)
    model.trained_on = description.metadata.get("source")
    return model, architecture


def _read(path: Path) -> tuple[dict[str, Tensor], Description]:
    """Read weights under the names of their file, and describe the file."""
    if _is_ours(path):
        weights, metadata = load_weights(path)
    else:
        weights, metadata = read_official(path)
        if not metadata:
            return weights, Description(path, official.deduce_options(weights), metadata)
    architecture = Architecture.from_metadata(metadata)
    if ":" not in architecture.backbone:
        _check_description(architecture, weights, path)
    return weights, Description(path, architecture.options(), metadata)


def _check_description(architecture: Architecture, weights: dict[str, Tensor], path: Path) -> None:
    """Raise `InputError` unless the network can be built and fits the weights.

    The network is built on the meta device.
    """
    try:
        with torch.device("meta"), _at_most_parameters(2 * len(weights)):
            model = architecture.build()
            if _is_ours(path):
                check_fit(model, weights, path)
            else:
                official.check(model, architecture.options(), weights)
    except _IMPOSSIBLE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"checkpoint {path} describes a network that cannot be built: {error}.") from None


@contextlib.contextmanager
def _at_most_parameters(limit: int) -> Iterator[None]:
    """Raise `InputError` once this context creates more parameters.

    A hostile description may ask for a network without end.
    """
    made = itertools.count(1)

    def count(*_) -> None:
        if next(made) > limit:
            raise InputError("the checkpoint describes a network of more layers than it has weights for.")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check_fit(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Raise `InputError` unless the weights have names and shapes of the model's."""
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    if differing:
        name = differing[0]
        raise InputError(
            f"checkpoint {path} does not fit the network: {len(differing)} weights are missing, unknown or misshapen, "
            f"such as {name}: {theirs.get(name, 'none')} instead of {ours.get(name, 'none')}."
        )


def fill(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Fill a model with the weights that were read from a path.

    Raises `InputError` if they do not fit.
    """
    check_fit(model, weights, path)
    model.load_state_dict(weights)


def load_forecaster_weights(model: nn.Module, architecture: Architecture, path: Path) -> None:
    """Fill a model from our safetensors or an official checkpoint.

    Raises `InputError` if the weights do not fit.
    """
    weights, description = _read(path)
    description.agreed(architecture.options())
    _fill(model, weights, path)


def start_from(model: nn.Module, architecture: Architecture, path: Path) -> None:
    """Fill a model from a file of weights, which may be of another objective or frame size.

    Channels of auxiliary noise that the file lacks get small random weights. Raises `InputError` if the other weights
    do not fit.
    """
    weights, _ = _read(path)
    if not _is_ours(path):
        plain = replace(architecture, objective="diffusion").build()
        official.load(plain, weights)
        weights = plain.state_dict()
    fill(model, _widened(weights, model), path)


def _widened(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Append the input channels of auxiliary noise."""
    new = OBJECTIVES[model.objective].auxiliary if isinstance(model, DiffCast) else 0
    wanted, widened = model.state_dict(), dict(weights)
    for name, value in weights.items():
        lacking = wanted[name].shape[1] - value.shape[1] if name in wanted and value.dim() == 4 else 0
        if new and lacking == new:
            widened[name] = torch.cat([value, AUXILIARY_WEIGHT * torch.randn(len(value), new, *value.shape[2:])], dim=1)
    return widened


def _fill(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    if _is_ours(path):
        fill(model, weights, path)
    else:
        official.load(model, weights)


def _is_ours(path: Path) -> bool:
    return path.suffix == ".safetensors"
