"""Official weights: recomputed entries, duplicates, and the architecture.

`utils.official` holds the naming rules.
"""

import re
from collections.abc import Callable
from math import isqrt, prod

import torch
from torch import Tensor, nn

from diffcast import process
from diffcast.described import plain
from diffcast.model import DiffCast
from models import full_options
from models.earthformer import Earthformer
from models.phydnet import PhyDNet
from utils.errors import InputError
from utils.official import check_fit, fill, parameters_of, to_official

_BACKBONE = "backbone_net."
_TIMESTEPS = 1000  # of the official diffusion process
_FRAMES_IN = 5  # the official local context ends after this frame, whatever is observed
_CLASSES = ("phydnet", "simvp")  # of the official code of DiffCast, in which their widths are constants
_OTHERS = ("convgru", "earthformer")  # of the codes of their own papers, without diffusion
_TOLERANCE = 1e-6  # absolute and relative, of recomputed entries
# PhyDNet's cells are registered twice, with and without `encoder.` before their names.
_WITH_ENCODER = re.compile(rf"^({re.escape(_BACKBONE)})?encoder\.(?=(phycell|convcell)\.)")
_WITHOUT_ENCODER = re.compile(rf"^({re.escape(_BACKBONE)})?(?=(phycell|convcell)\.)")


def load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill a backbone or a DiffCast from an official state dict.

    Raises `InputError` for parameters that do not fit, for duplicates that differ, and for a noise schedule or other
    recomputed entry that is not ours.
    """
    parameters = _merge_duplicates(weights)
    recomputed = recomputed_entries(model)
    given = {name: parameters.pop(name) for name in recomputed if name in parameters}
    if differing := [name for name, value in given.items() if not _agree(value, recomputed[name])]:
        raise InputError(
            f"the official weights belong to a different {type(model).__name__}: {', '.join(differing)} "
            "would be computed otherwise here."
        )
    fill(model, parameters)


def check(model: nn.Module, options: dict, weights: dict[str, Tensor]) -> None:
    """Compare an official state dict with the network noted in its file.

    `model` may be on the meta device.

    Raises `InputError` for other names and shapes, and for a network that `export` would have refused.
    """
    if impossible := inexpressible(options):
        raise InputError(f"the note in the official weights describes no official network: {'; '.join(impossible)}.")
    check_fit(model, parameters_of(model, _merge_duplicates(weights)))


def official_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the entries that the official code needs for a strict load.

    Duplicates and recomputed entries are among them.
    """
    state = to_official(model)
    if not state:
        raise InputError(f"{type(model).__name__} has no weights to export.")
    duplicates = {_WITH_ENCODER.sub(r"\1", name): value for name, value in state.items()}
    return state | duplicates | recomputed_entries(model)


def inexpressible(options: dict) -> list[str]:
    """List options that the official code has otherwise, as `--option ours / its`."""
    backbone, diffusion = options["backbone"], options["use_diff"]
    known = _CLASSES if diffusion else _CLASSES + _OTHERS
    found = [] if backbone in known else [f"--backbone {backbone} / one of {', '.join(known)}"]
    fixed = {}
    if diffusion:
        fixed = {"residual_scale": 1.0, "timesteps": _TIMESTEPS, "frames_in": _FRAMES_IN, "img_channel": 1}
    found += [f"--{name} {options[name]:g} / {value:g}" for name, value in fixed.items() if options[name] != value]
    if diffusion and options.get("objective", "diffusion") != "diffusion":
        found.append(f"--objective {options['objective']} / diffusion")
    if diffusion and options["segment_length"] not in (None, options["frames_in"]):
        found.append(f"--segment_length {options['segment_length']} / as many as --frames_in")
    if backbone in _CLASSES:
        constants = full_options(backbone, {})
        found += [
            f"--backbone_options {name}={value} / {constants[name]}"
            for name, value in options["backbone_options"].items()
            if plain(value) != plain(constants[name])
        ]
        if len(set(options["img_size"])) > 1:
            found.append(f"--img_size {' '.join(map(str, options['img_size']))} / one number")
    if (diffusion or backbone == "simvp") and options["frames_out"] % options["frames_in"]:
        found.append(f"--frames_out {options['frames_out']} / a multiple of --frames_in {options['frames_in']}")
    return found


def official_call(options: dict) -> str:
    """Return the options that the official code needs in addition to the weights."""
    size = " ".join(map(str, dict.fromkeys(options["img_size"])))
    words = f"--img_size {size} --frames_in {options['frames_in']} --frames_out {options['frames_out']}"
    if not options["use_diff"]:
        return words
    multiples = ", ".join(map(str, options["dim_mults"]))
    return f"{words}, and its networks built with dim {options['dim']} and multiples ({multiples})"


def recomputed_entries(model: nn.Module) -> dict[str, Tensor]:
    """Compute the official entries that follow from the architecture."""
    if isinstance(model, DiffCast):
        inner = {_BACKBONE + name: value for name, value in recomputed_entries(model.backbone).items()}
        return _schedule_entries(model.schedule.timesteps) | inner
    if isinstance(model, PhyDNet):
        basis = model.physical_cell.moment_basis
        return {f"k2m._{m}{axis}": value for axis in (0, 1) for m, value in (("M", basis), ("invM", basis.inverse()))}
    if isinstance(model, Earthformer):
        return _distance_entries(model)
    return {}


def _schedule_entries(timesteps: int) -> dict[str, Tensor]:
    betas = process.sigmoid_betas(timesteps)
    signal = (1 - betas).cumprod(0)
    before = torch.cat([signal.new_ones(1), signal[:-1]])
    variance = betas * (1 - before) / (1 - signal)
    entries = {
        "betas": betas,
        "alphas_cumprod": signal,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": signal.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - signal).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - signal).log(),
        "sqrt_recip_alphas_cumprod": (1 / signal).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / signal - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - signal),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - signal),
        "loss_weight": signal,
    }
    return {name: value.float() for name, value in entries.items()}


def _distance_entries(model: Earthformer) -> dict[str, Tensor]:
    """Compute the indices into each table of relative position biases."""
    entries = {}
    for name, table in to_official(model).items():
        if name.endswith("relative_position_bias_table"):
            positions = torch.arange((len(table) + 1) // 2)
            index = positions[:, None] - positions + len(positions) - 1
            entries[name.removesuffix("bias_table") + "index"] = index
    return entries


def _merge_duplicates(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for name, value in weights.items():
        first = merged.setdefault(_WITHOUT_ENCODER.sub(r"\1encoder.", name), value)
        if not torch.equal(first, value):
            raise InputError(f"the official weights contradict themselves: {name} is there twice, with other values.")
    return merged


def _agree(value: Tensor, ours: Tensor) -> bool:
    return value.shape == ours.shape and torch.allclose(value.double(), ours.double(), rtol=_TOLERANCE, atol=_TOLERANCE)


def deduce_options(weights: dict[str, Tensor]) -> dict:
    """Deduce options of `run.py` from an official state dict.

    Weights tell the frame size of Earthformer alone, not the number of observed frames of PhyDNet and ConvGRU, nor of
    forecast frames of these and SimVP. A DiffCast observes as many frames as its segments have, as in the official
    code. Raises `InputError` if this is no architecture that official weights exist for.
    """
    weights = _merge_duplicates(weights)
    inner = {name.removeprefix(_BACKBONE): value for name, value in weights.items() if name.startswith(_BACKBONE)}
    shapes = _Shapes(inner or weights)
    name = next((name for name, (telltale, _) in _BACKBONES.items() if shapes.count(telltale)), None)
    if name is None:
        raise InputError(f"the official weights are of no backbone known here; known are {', '.join(_BACKBONES)}.")
    fields, options = _BACKBONES[name][1](shapes)
    diffusion = _diffusion(_Shapes(weights)) if inner else {"use_diff": False}
    return {"backbone": name, "backbone_options": options} | fields | diffusion


class _Shapes:
    """Sizes of the tensors of an official state dict."""

    def __init__(self, weights: dict[str, Tensor]):
        self.shapes = {name: tuple(value.shape) for name, value in weights.items()}

    def size(self, name: str, axis: int = 0) -> int:
        """Return the size of one axis. Raises `InputError` if it is missing."""
        shape = self.shapes.get(name, ())
        if axis >= len(shape) or shape[axis] == 0:
            raise InputError(f"the official weights do not tell their architecture: {name} is missing or misshapen.")
        return shape[axis]

    def sizes(self, template: str, axis: int = 0) -> tuple[int, ...]:
        """Return one axis of all tensors of a list.

        `{}` in the template stands for the index in the list, from 0.
        """
        prefix = template.partition("{}")[0]
        return tuple(self.size(template.format(i), axis) for i in range(self.count(prefix)))

    def count(self, prefix: str) -> int:
        """Count the entries of a list by the prefix of its names."""
        below = (name.removeprefix(prefix).partition(".")[0] for name in self.shapes if name.startswith(prefix))
        return len(set(below))


def _diffusion(shapes: _Shapes) -> dict:
    channels = shapes.size("ctx_net.init_conv.weight", 1)
    dim = shapes.size("model.init_conv.weight")
    widths = shapes.sizes("ctx_net.downs.{}.0.block1.proj.weight")[1:]
    widths += (shapes.size("model.mid_block1.block1.proj.weight"),)
    return {
        "use_diff": True,
        "frames_in": shapes.size("model.final_conv.weight") // channels,
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "timesteps": shapes.size("betas"),
    }


def _phydnet(shapes: _Shapes) -> tuple[dict, dict]:
    gates = shapes.sizes("encoder.convcell.cell_list.{}.conv.weight")
    options = {
        "dim": shapes.size("encoder.encoder_E.c3.main.0.weight"),
        "lstm_dims": tuple(size // 4 for size in gates[:-1]),
        "kernel_size": shapes.size("encoder.phycell.cell_list.0.F.conv1.weight", 3),
    }
    return {"img_channel": shapes.size("encoder.encoder_E.c1.main.0.weight", 1)}, options


def _simvp(shapes: _Shapes) -> tuple[dict, dict]:
    width = shapes.size("enc.enc.0.conv.conv.weight")
    options = {
        "spatial_width": width,
        "translator_width": 2 * shapes.size("hid.enc.0.conv1.weight"),
        "translator_depth": shapes.count("hid.enc."),
    }
    fields = {
        "img_channel": shapes.size("enc.enc.0.conv.conv.weight", 1),
        "frames_in": shapes.size("hid.enc.0.conv1.weight", 1) // width,
    }
    return fields, options


def _convgru(shapes: _Shapes) -> tuple[dict, dict]:
    levels = range(1, shapes.count("encoder.") + 1)
    options = {
        "dims": tuple(shapes.size(f"encoder.{level}.cell.h2h.weight", 1) for level in levels),
        "kernel_sizes": tuple(shapes.size(f"encoder.{level}.cell.h2h.weight", 3) for level in levels),
        "stem_dim": shapes.size("head.0.weight"),
    }
    return {"img_channel": shapes.size("head.1.weight")}, options


def _earthformer(shapes: _Shapes) -> tuple[dict, dict]:
    stem_dims = shapes.sizes("initial_encoder.patch_merge_list.{}.reduction.weight")
    patches = shapes.sizes("initial_encoder.patch_merge_list.{}.reduction.weight", 1)
    factors = tuple(isqrt(patch // dim) for patch, dim in zip(patches, stem_dims, strict=True))
    options = {
        "stem_dims": stem_dims,
        "stem_factors": factors,
        "stem_convs": shapes.count("initial_encoder.conv_block_list.0.") // 2,
        "heads": shapes.size("encoder.blocks.0.0.attn_l.0.relative_position_bias_table", 1),
        "global_vectors": shapes.size("init_global_vectors"),
    }
    fields = {
        "img_channel": shapes.size("dec_final_proj.weight"),
        "img_size": [shapes.size(f"enc_pos_embed.{axis}_embed.weight") * prod(factors) for axis in "HW"],
        "frames_in": shapes.size("enc_pos_embed.T_embed.weight"),
        "frames_out": shapes.size("dec_pos_embed.T_embed.weight"),
    }
    return fields, options


# Backbone -> a prefix that no other has, and a function that deduces fields and options of the backbone.
_BACKBONES: dict[str, tuple[str, Callable[[_Shapes], tuple[dict, dict]]]] = {
    "phydnet": ("encoder.encoder_E.", _phydnet),
    "simvp": ("hid.enc.", _simvp),
    "convgru": ("forecaster.", _convgru),
    "earthformer": ("initial_encoder.", _earthformer),
}
