"""What a forecaster is made of: enough to build it again from a checkpoint."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from diffcast import official
from diffcast.described import Description
from diffcast.model import build_diffcast
from models import build_backbone
from utils.errors import InputError
from utils.official import read_official
from utils.weights import load_weights

# What constructors raise for settings that nobody chose.
_IMPOSSIBLE = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Architecture:
    """Everything that decides names and shapes of the weights, with the paper's values."""

    backbone: str = "phydnet"
    use_diff: bool = False
    frame_shape: tuple[int, int, int] = (1, 128, 128)
    frames_in: int = 5
    frames_out: int = 20
    backbone_options: dict = field(default_factory=dict)
    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    segment_length: int | None = None
    timesteps: int = 1000
    residual_scale: float = 1.0

    def build(self, **training) -> nn.Module:
        """The forecaster with fresh weights: a backbone, in a DiffCast if `use_diff`.

        `training` are the options of `DiffCast` that shape its loss alone.
        """
        backbone = build_backbone(
            self.backbone, self.frame_shape, self.frames_in, self.frames_out, **self.backbone_options
        )
        if not self.use_diff:
            return backbone
        return build_diffcast(
            backbone,
            self.dim,
            self.dim_mults,
            self.segment_length,
            self.timesteps,
            residual_scale=self.residual_scale,
            **training,
        )

    def to_metadata(self) -> dict:
        """JSON-ready form."""
        return asdict(self)

    def options(self) -> dict:
        """The fields by the names of the options of `run.py`."""
        channels, *img_size = self.frame_shape
        fields = {name: value for name, value in vars(self).items() if name != "frame_shape"}
        return {"img_channel": channels, "img_size": img_size} | fields

    @classmethod
    def of(cls, options: dict) -> "Architecture":
        """The inverse of `options`, the paper's values for what is left out; other options are ignored."""
        shape = (options.get("img_channel", 1), *options.get("img_size", cls.frame_shape[1:]))
        fields = {name: options[name] for name in cls.__dataclass_fields__ if name in options}
        return cls(**fields | {"frame_shape": shape, "dim_mults": tuple(options.get("dim_mults", cls.dim_mults))})

    @classmethod
    def from_metadata(cls, metadata: dict) -> "Architecture":
        """The architecture in a checkpoint's metadata; raises `InputError` if there is none."""
        try:
            fields = {name: metadata["architecture"][name] for name in cls.__dataclass_fields__}
            found = cls(**fields | {name: tuple(fields[name]) for name in ("frame_shape", "dim_mults")})
        except (KeyError, TypeError):
            raise InputError("the checkpoint does not say which network its weights belong to.") from None
        if not found._is_plausible():
            raise InputError("the checkpoint says that its weights belong to a network that cannot be.")
        return found

    def _is_plausible(self) -> bool:
        """Whether all fields have their types, and numbers sizes that could be meant."""
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
    """Move a forecaster to a device, the weights of its 2-D convolutions in the layout that is fastest there."""
    model.to(device)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # A copy, because `contiguous` leaves the strides of a single channel as they are; those of its gradient
            # would differ, and several processes would copy it at every step.
            weight = module.weight.data
            module.weight.data = torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)
    return model


def describe(path: Path) -> Description:
    """What a weights file says about itself: ours everything, an official one some of its network.

    Nothing is imported on its word. Raises `InputError` for a network that its weights do not fit.
    """
    return _read(path)[1]


def load_forecaster(
    path: Path,  # our safetensors or an official checkpoint
    backbone: str | None = None,  # as the user names it; a `module:Class` is imported only if it is named here
    img_size: int | None = None,
    frames_in: int | None = None,
    frames_out: int | None = None,
) -> tuple[nn.Module, Architecture]:
    """Build the forecaster that a file holds.

    The options say what an official checkpoint does not tell. Raises `InputError` if the file tells otherwise, or does
    not tell what it is.
    """
    weights, description = _read(path)
    given = {"backbone": backbone, "frames_in": frames_in, "frames_out": frames_out}
    given |= {"img_size": [img_size, img_size] if img_size else None}
    architecture = Architecture.of(description.agreed({name: value for name, value in given.items() if value}))
    model = architecture.build()
    _fill(model, weights, path)
    return model, architecture


def _read(path: Path) -> tuple[dict[str, Tensor], Description]:
    """Weights under the names of their file, and what the file says about itself."""
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
    """Raise `InputError` unless the network can be built and fits the weights; it gets no memory here."""
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
    """Raise `InputError` once more parameters are made in this context: a network may be endless."""
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
    """Fill a model with the weights that were read from a path; raises `InputError` if they do not fit."""
    check_fit(model, weights, path)
    model.load_state_dict(weights)


def load_forecaster_weights(model: nn.Module, architecture: Architecture, path: Path) -> None:
    """Fill a model from our safetensors or an official checkpoint; raises `InputError` if they do not fit."""
    weights, description = _read(path)
    description.agreed(architecture.options())
    _fill(model, weights, path)


def _fill(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    if _is_ours(path):
        fill(model, weights, path)
    else:
        official.load(model, weights)


def _is_ours(path: Path) -> bool:
    return path.suffix == ".safetensors"
