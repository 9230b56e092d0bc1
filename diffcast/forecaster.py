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
from diffcast.model import build_diffcast
from models import build_backbone
from utils.checkpoint import load_weights
from utils.errors import InputError
from utils.official import read_official

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

    @classmethod
    def from_metadata(cls, metadata: dict) -> "Architecture":
        """The architecture in a checkpoint's metadata; raises `InputError` if there is none."""
        try:
            stored = {"residual_scale": 1.0} | metadata["architecture"]  # which early checkpoints do not tell
            fields = {name: stored[name] for name in cls.__dataclass_fields__}
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

    def differences(self, other: "Architecture") -> list[str]:
        """How `other` differs, as `name: mine / other's`; diffusion settings count only where there is diffusion."""
        names = list(self.__dataclass_fields__)
        if not (self.use_diff and other.use_diff):
            names = names[: names.index("dim")]
        return [
            f"{name} {getattr(self, name)} / {getattr(other, name)}"
            for name in names
            if getattr(self, name) != getattr(other, name)
        ]


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


def load_forecaster(
    path: Path,  # our safetensors or an official checkpoint
    img_size: int | None = None,  # these three for an official checkpoint: what it does not tell, or tells otherwise
    frames_in: int | None = None,
    frames_out: int | None = None,
    trusted_backbone: str | None = None,  # a `module:Class` that the file may name, which imports that module
) -> tuple[nn.Module, Architecture]:
    """Build the forecaster that a file holds; raises `InputError` if the file does not tell what it is."""
    if _is_ours(path):
        weights, metadata = load_weights(path)
        architecture = Architecture.from_metadata(metadata)
        return _build_for(architecture, weights, path, trusted_backbone), architecture
    weights = read_official(path)
    fields = official.deduce_architecture(weights)
    channels, frame_size = fields.pop("channels"), fields.pop("frame_size", Architecture.frame_shape[1:])
    fields["frame_shape"] = (channels, *((img_size, img_size) if img_size else frame_size))
    fields |= {"frames_in": frames_in} if frames_in else {}
    fields |= {"frames_out": frames_out} if frames_out else {}
    architecture = Architecture(**fields)
    model = architecture.build()
    official.load(model, weights)
    return model, architecture


def _build_for(
    architecture: Architecture,
    weights: dict[str, Tensor],
    path: Path,
    trusted_backbone: str | None,
) -> nn.Module:
    """The forecaster with these weights; what a file says is neither imported nor given memory before it fits."""
    if ":" not in architecture.backbone:
        try:
            with torch.device("meta"), _at_most_parameters(2 * len(weights)):
                check_fit(architecture.build(), weights, path)
        except _IMPOSSIBLE as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"checkpoint {path} describes a network that cannot be built: {error}.") from None
    elif architecture.backbone != trusted_backbone:
        raise InputError(
            f"checkpoint {path} has the backbone {architecture.backbone}, which is code outside of this project and "
            "is not run on a file's word; evaluate it by run.py, and name it there with --backbone."
        )
    return fill(architecture.build(), weights, path)


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


def fill(model: nn.Module, weights: dict[str, Tensor], path: Path) -> nn.Module:
    """Fill a model with the weights that were read from a path; raises `InputError` if they do not fit."""
    check_fit(model, weights, path)
    model.load_state_dict(weights)
    return model


def load_forecaster_weights(model: nn.Module, architecture: Architecture, path: Path) -> None:
    """Fill a model from our safetensors or an official checkpoint; raises `InputError` if they do not fit."""
    if not _is_ours(path):
        official.load(model, read_official(path))
        return
    weights, metadata = load_weights(path)
    if differences := Architecture.from_metadata(metadata).differences(architecture):
        raise InputError(
            f"checkpoint {path} is of another architecture (checkpoint / command line): {'; '.join(differences)}."
        )
    fill(model, weights, path)


def _is_ours(path: Path) -> bool:
    return path.suffix == ".safetensors"
