"""What a forecaster is made of: enough to build it again from a checkpoint."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import nn

from diffcast.model import build_diffcast
from models import build_backbone
from utils.checkpoint import load_pickle, load_weights
from utils.errors import InputError
from utils.official import load_official


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

    def build(self, diffusion_weight: float = 0.5, freeze_backbone: bool = False) -> nn.Module:
        """The forecaster with fresh weights: a backbone, in a DiffCast if `use_diff`."""
        backbone = build_backbone(
            self.backbone, self.frame_shape, self.frames_in, self.frames_out, **self.backbone_options
        )
        if not self.use_diff:
            return backbone
        return build_diffcast(backbone, self.dim, self.dim_mults, self.segment_length, self.timesteps, diffusion_weight)

    def to_metadata(self) -> dict:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_metadata(cls, metadata: dict) -> "Architecture":
        """The inverse of `to_metadata`."""
        known = {name: metadata[name] for name in cls.__dataclass_fields__ if name in metadata}
        for name in ("frame_shape", "dim_mults"):
            known[name] = tuple(known[name])
        return cls(**known)

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


def load_forecaster_weights(model: nn.Module, architecture: Architecture, path: Path) -> None:
    """Fill a model from our safetensors or an official `.pt`; raises `InputError` if they do not fit."""
    if path.suffix == ".pt":
        loaded = load_pickle(path)
        weights = loaded.get("model", loaded)
        load_official(model, {name.removeprefix("module."): value for name, value in weights.items()})
        return
    weights, metadata = load_weights(path)
    if differences := Architecture.from_metadata(metadata["architecture"]).differences(architecture):
        raise InputError(
            f"checkpoint {path} is of another architecture (checkpoint / command line): {'; '.join(differences)}."
        )
    model.load_state_dict(weights)
