"""What the precisions of the command line mean on a device."""

import logging

import torch

from utils.errors import InputError

LOG = logging.getLogger(__name__)


def is_bfloat16_native(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself, which others emulate."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def forecast_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The type that `auto`, `float32` or `bfloat16` means on a device; `auto` is bfloat16 where that is native."""
    if wanted != "auto":
        return getattr(torch, wanted)
    return torch.bfloat16 if is_bfloat16_native(device) else torch.float32


def training_precision(wanted: str, device: torch.device) -> str:
    """What `no`, `fp16`, `bf16` or `auto` means on a device; `auto` is bf16 where that is native, and else no.

    Raises `InputError` for fp16 on a processor, where Accelerate would compute in float32 without a word.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise InputError("--mixed_precision fp16 needs a GPU: on a processor, give auto or no.")
    if wanted != "auto":
        return wanted
    return "bf16" if is_bfloat16_native(device) else "no"


def warn_if_emulated(option: str, wanted: str, device: torch.device) -> None:
    """Warn of a bfloat16 that was asked for by name on a device that only emulates it."""
    if wanted in ("bf16", "bfloat16") and not is_bfloat16_native(device):
        LOG.warning(
            "%s %s: this %s emulates bfloat16, so each step takes 2 to 8 times as long as in float32; auto would not.",
            option,
            wanted,
            "processor" if device.type == "cpu" else "device",
        )
