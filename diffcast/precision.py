"""Precisions of the command line on a device."""

import logging

import torch

from utils.errors import InputError

LOG = logging.getLogger(__name__)


def is_bfloat16_native(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def forecast_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return the type of the diffusion networks in forecasts on a device.

    `wanted` is auto, float32 or bfloat16. auto is bfloat16 where that is native.
    """
    if wanted != "auto":
        return getattr(torch, wanted)
    return torch.bfloat16 if is_bfloat16_native(device) else torch.float32


def training_precision(wanted: str, device: torch.device) -> str:
    """Return Accelerate's name of the precision of a training on a device.

    `wanted` is no, fp16, bf16 or auto. auto is bf16 where that is native, otherwise no.

    Raises `InputError` for fp16 on a processor, where Accelerate would compute in float32 without a word.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise InputError("--mixed_precision fp16 needs a GPU: on a processor, give auto or no.")
    if wanted != "auto":
        return wanted
    return "bf16" if is_bfloat16_native(device) else "no"


def warn_if_emulated(option: str, wanted: str, device: torch.device) -> None:
    """Warn of a bfloat16 by name on a device that emulates it."""
    if wanted in ("bf16", "bfloat16") and not is_bfloat16_native(device):
        LOG.warning(
            "%s %s: this %s emulates bfloat16, so each step takes 2 to 8 times as long as in float32; auto would not.",
            option,
            wanted,
            "processor" if device.type == "cpu" else "device",
        )
