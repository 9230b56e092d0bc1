"""Deterministic backbones, by name."""

import importlib
import inspect
import os
import sys

import torch

from models.advection import Advection
from models.backbone import Backbone
from models.convgru import ConvGRU
from models.earthformer import Earthformer
from models.persistence import Persistence
from models.phydnet import PhyDNet
from models.simvp import SimVP
from utils.errors import InputError

__all__ = ["BACKBONES", "Backbone", "build_backbone", "full_options"]

SIZES = ("frame_shape", "frames_in", "frames_out")  # what every constructor takes

BACKBONES: dict[str, type[Backbone]] = {
    "simvp": SimVP,
    "phydnet": PhyDNet,
    "convgru": ConvGRU,
    "earthformer": Earthformer,
    "persistence": Persistence,
    "advection": Advection,
}


def build_backbone(
    name: str,  # a key of BACKBONES, or a user's own class as `my_package.my_module:MyNet`
    frame_shape: tuple[int, int, int] = (1, 128, 128),
    frames_in: int = 5,
    frames_out: int = 20,
    **options,  # further arguments of the backbone's constructor
) -> Backbone:
    """Build a backbone with fresh weights.

    Raises `InputError` for an unknown name, and for options that the backbone does not take.
    """
    backbone = _find(name)
    arguments = {"frame_shape": frame_shape, "frames_in": frames_in, "frames_out": frames_out, **options}
    try:
        inspect.signature(backbone).bind(**arguments)
    except TypeError as error:
        names = ", ".join(inspect.signature(backbone).parameters)
        raise InputError(f"backbone {name}: {error}; its constructor takes {names}.") from None
    if ":" in name:
        return _checked(name, backbone(**arguments))
    try:
        return backbone(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError) or not options:
            raise
        raise InputError(f"backbone {name} cannot be built with {options}: {error}.") from None


def full_options(name: str, options: dict) -> dict:
    """Complete a backbone's own options by the defaults of its constructor."""
    parameters = inspect.signature(_find(name)).parameters.values()
    own = (parameter for parameter in parameters if parameter.name not in SIZES)
    defaults = {parameter.name: parameter.default for parameter in own if parameter.default is not parameter.empty}
    return defaults | options


def _checked(name: str, backbone: Backbone) -> Backbone:
    """Return a user's backbone after checking the shape of its forecast."""
    backbone.eval()
    with torch.no_grad():
        shape = tuple(backbone.trend(torch.zeros(1, backbone.frames_in, *backbone.frame_shape)).shape)
    promised = (1, backbone.frames_out, *backbone.frame_shape)
    if shape != promised:
        raise InputError(f"backbone {name}: its trend has the shape {shape}, not (B, T, C, H, W) = {promised}.")
    return backbone.train()


def _find(name: str) -> type[Backbone]:
    if ":" not in name:
        if name not in BACKBONES:
            raise InputError(
                f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}, or name your own class as "
                "my_package.my_module:MyNet."
            )
        return BACKBONES[name]
    module_name, _, class_name = name.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # Python looks only in the folder of the script itself
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"backbone {name!r} cannot be imported: {error}.") from None
    if not (inspect.isclass(found) and issubclass(found, Backbone)):
        raise InputError(f"backbone {name!r} is not a subclass of models.Backbone; derive it from that class.")
    if found.trend is Backbone.trend:
        raise InputError(f"backbone {name!r} does not implement `trend`.")
    return found
