"""Write losses and gradients of the first step of tiny trainings; started by a test, on one or two processes."""

import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from dataset import build_dataset
from diffcast.training import Trainer, TrainingSettings
from tests.tiny import BACKBONES, tiny_architecture

data, batch_size, out = sys.argv[1:]
train_set = build_dataset("sevir", "train", data, 16)
frames = torch.stack([train_set[i] for i in range(4)])
accelerator = Accelerator(cpu=True)
found = {}
for name in BACKBONES:
    for use_diff in (False, True):
        torch.manual_seed(0)
        model = tiny_architecture(name, use_diff).build()
        settings = TrainingSettings(batch_size=int(batch_size), num_workers=0)
        trainer = Trainer(accelerator, model, train_set, train_set, settings, Path(tempfile.mkdtemp()), {})
        first = accelerator.process_index * settings.batch_size
        loss = trainer._accumulate(0, frames[first : first + settings.batch_size])["loss"]
        found[f"{name} {use_diff} loss"] = accelerator.reduce(loss.detach(), "mean")
        for parameter, value in accelerator.unwrap_model(trainer.model).named_parameters():
            if value.requires_grad:
                found[f"{name} {use_diff} {parameter}"] = value.grad.contiguous()
if accelerator.is_main_process:
    save_file(found, out)
accelerator.end_training()
