"""The first steps of tiny trainings on data with gaps; as a script, on two processes, for a test."""

import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from diffcast.training.loop import Trainer, TrainingSettings
from tests.tiny import BACKBONES, tiny_architecture

STEPS = 2  # later losses show how AdamW magnifies the rounding of vanishing gradients
SEQUENCES = 4  # per step, over all batches and processes


def frames_with_gaps() -> Tensor:
    """Sequences of noise with very different gaps: none, one pixel, half of each frame, and nothing known."""
    frames = torch.rand(SEQUENCES, 25, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    frames[1, 7, 0, 0, 0] = torch.nan
    frames[2, :, :, 8:] = torch.nan
    frames[3, 4:] = torch.nan
    return frames


def first_steps(backbone: str, use_diff: bool, batches: int = 1) -> dict[str, Tensor]:
    """Losses of the steps, each of `batches` per process, and the gradient of the first; the same on all processes."""
    torch.manual_seed(0)
    model = tiny_architecture(backbone, use_diff).build()
    frames = frames_with_gaps()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=batches)
    settings = TrainingSettings(batch_size=SEQUENCES // batches // accelerator.num_processes, grad_acc_step=batches)
    trainer = Trainer(accelerator, model, frames, frames, settings, Path(tempfile.mkdtemp()), {})
    found = {}
    for step in range(STEPS):
        losses = []
        for batch in range(batches):
            first = (batch * accelerator.num_processes + accelerator.process_index) * settings.batch_size
            number = step * batches + batch
            losses.append(trainer._accumulate(number, frames[first : first + settings.batch_size])["loss"].detach())
        found[f"loss of step {step}"] = accelerator.reduce(torch.stack(losses).mean(), "mean")
        if step == 0:
            found |= {name: p.grad.contiguous().clone() for name, p in model.named_parameters() if p.requires_grad}
        trainer._update()
    return found


if __name__ == "__main__":
    everything = {
        f"{backbone} {use_diff} {name}": value
        for backbone in BACKBONES
        for use_diff in (False, True)
        for name, value in first_steps(backbone, use_diff).items()
    }
    if Accelerator(cpu=True).is_main_process:
        save_file(everything, sys.argv[1])
    Accelerator(cpu=True).end_training()
