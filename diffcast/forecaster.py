"""What a forecaster is made of: enough to build it again from a checkpoint."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from diffcast import official
from diffcast.model import build_diffcast
from models import build_backbone
from utils.checkpoint import load_weights
from utils.errors import InputError
from utils.official import read_official


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
        return build_diffcast(
            backbone, self.dim, self.dim_mults, self.segment_length, self.timesteps, diffusion_weight, freeze_backbone
        )

    def to_metadata(self) -> dict:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_metadata(cls, metadata: dict) -> "Architecture":
        """The architecture in a checkpoint's metadata; raises `InputError` if there is none."""
        try:
            fields = {name: metadata["architecture"][name] for name in cls.__dataclass_fields__}
            return cls(**fields | {name: tuple(fields[name]) for name in ("frame_shape", "dim_mults")})
        except (KeyError, TypeError):
            raise InputError("the checkpoint does not say which network its weights belong to.") from None

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


def forecast_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The type that `auto`, `float32` or `bfloat16` means on a device; `auto` is bfloat16 where that is native."""
    if wanted != "auto":
        return getattr(torch, wanted)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def load_forecaster(
    path: Path,  # our safetensors or an official checkpoint
    img_size: int | None = None,  # these three for an official checkpoint: what it does not tell, or tells otherwise
    frames_in: int | None = None,
    frames_out: int | None = None,
) -> tuple[nn.Module, Architecture]:
    """Build the forecaster that a file holds; raises `InputError` if the file does not tell what it is."""
    if _is_ours(path):
        weights, metadata = load_weights(path)
        architecture = Architecture.from_metadata(metadata)
        model = architecture.build()
        model.load_state_dict(weights)
        return model, architecture
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
    model.load_state_dict(weights)


def _is_ours(path: Path) -> bool:
    return path.suffix == ".safetensors"
