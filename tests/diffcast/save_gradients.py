"""Write the gradients of a tiny training's first step; started by a test, on one or two processes."""

import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from dataset import build_dataset
from diffcast.forecaster import Architecture
from diffcast.training import Trainer, TrainingSettings

data, batch_size, out = sys.argv[1:]
torch.manual_seed(0)
architecture = Architecture(
    "simvp", True, (1, 16, 16), backbone_options={"spatial_width": 8, "translator_width": 16}, dim=8, dim_mults=(1, 2)
)
train_set = build_dataset("sevir", "train", data, 16)
settings = TrainingSettings(batch_size=int(batch_size), num_workers=0)
trainer = Trainer(
    Accelerator(cpu=True), architecture.build(), train_set, train_set, settings, Path(tempfile.mkdtemp()), {}
)
frames = torch.stack([train_set[i] for i in range(4)])
first = trainer.accelerator.process_index * settings.batch_size
trainer._accumulate(0, frames[first : first + settings.batch_size])
if trainer.accelerator.is_main_process:
    model = trainer.accelerator.unwrap_model(trainer.model)
    save_file({name: p.grad.contiguous() for name, p in model.named_parameters()}, out)
trainer.accelerator.end_training()
