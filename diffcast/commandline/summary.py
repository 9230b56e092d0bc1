"""Cost of a run: parameters, floating-point operations, memory."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from diffcast.forecasting.forecasts import ForecastSettings
from diffcast.model import DiffCast
from diffcast.training.loop import TrainingSettings


def summarise(model: nn.Module, training: TrainingSettings, forecasts: ForecastSettings) -> list[list[str]]:
    """Return rows (quantity, value) of parameters, GFLOPs and memory.

    A multiplication and an addition count as two operations.

    Everything is measured on PyTorch's meta device in float32, which computes no values. A backward pass is assumed to
    cost two forward passes.
    """
    forecasts = forecasts.fitting(model)
    weights = sum(p.numel() for p in model.parameters())
    rows = [[f"parameters of {name}", f"{_count(part):,}"] for name, part in _parts(model).items()]
    rows.append(["parameters in all", f"{weights:,}"])
    flops, saved = training_cost(model)
    if saved:
        sequences = training.batch_size * training.grad_acc_step
        rows += [
            ["GFLOPs per training step and process", f"{flops * sequences / 1e9:,.1f}"],
            # weights, gradients, two moments of AdamW, averaged weights
            ["memory for training, about", f"{(5 * 4 * weights + saved * training.batch_size) / 2**30:,.2f} GiB"],
        ]
    per_forecast = forecast_flops(model, forecasts) / 1e9
    rows.append([f"GFLOPs per forecast ({_sampling(model, forecasts)})", f"{per_forecast:,.1f}"])
    return rows


def forecast_flops(model: nn.Module, settings: ForecastSettings) -> int:
    """Count the operations of forecasting one sequence."""
    shapes = _on_meta(model).requires_grad_(False)
    frames = _frames(shapes, model.frames_in)
    if not isinstance(model, DiffCast):
        return _flops(lambda: shapes.forecast(frames))
    settings = settings.fitting(model)
    once, twice = (_flops(lambda n=steps: shapes.generate(frames, sampling_steps=n)) for steps in (1, 2))
    step = twice - once
    return once - step + step * settings.sampling_steps * settings.members


def _on_meta(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("meta")


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    if isinstance(model, DiffCast):
        return {"the backbone": model.backbone, "GlobalMotion": model.motion, "LocalResidual": model.residual}
    return {"the backbone": model}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _sampling(model: nn.Module, settings: ForecastSettings) -> str:
    if isinstance(model, DiffCast):
        return f"{settings.members} member(s), {settings.sampler} with {settings.sampling_steps} steps"
    return "deterministic"


def _frames(model: nn.Module, number: int) -> torch.Tensor:
    return torch.zeros(1, number, *model.frame_shape, device="meta")


def training_cost(model: nn.Module) -> tuple[int, int]:
    """Count the operations of a training pass of one sequence.

    Also returns the number of bytes that are kept between forward and backward pass.
    """
    if not any(p.requires_grad for p in model.parameters()):
        return 0, 0
    model, kept = _on_meta(model), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        forward = _flops(lambda: model(_frames(model, model.frames_in), _frames(model, model.frames_out)))
    return 3 * forward, sum(kept.values())


def _flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
