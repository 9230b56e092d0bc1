"""The residual-diffusion framework around a deterministic backbone."""

from diffcast.model import DiffCast, build_diffcast

__all__ = ["DiffCast", "build_diffcast"]
