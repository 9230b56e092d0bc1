"""The command line on a network small enough to train within a test."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from dataset.sequences import Sequences
from diffcast.forecaster import Architecture

ROOT = Path(__file__).parents[1]
NETWORK = (
    "--backbone simvp --backbone_options spatial_width=8 translator_width=16 translator_depth=2 --dim 8 --dim_mults 1 2"
)
SETTINGS = (
    f"{NETWORK} --img_size 16 --num_workers 0 --batch_size 4 --epochs 1 --training_steps 6 --warmup_steps 2 --lr 1e-3 "
    "--valid_every 3 --valid_sequences 5 --sampling_steps 2 --eval_sequences 5 --cases 1"
).split()


BACKBONES = {  # options that make each backbone small
    "simvp": {"spatial_width": 8, "translator_width": 16, "translator_depth": 2},
    "phydnet": {"dim": 32, "lstm_dims": [16], "kernel_size": 3},
    "convgru": {"dims": [8, 8], "kernel_sizes": [3, 3], "stem_dim": 4},
    "earthformer": {"stem_dims": [8, 16], "stem_factors": [1, 2], "stem_convs": 1, "heads": 2, "dropout": 0.0},
}


def tiny_architecture(backbone: str, use_diff: bool, **options) -> Architecture:
    """A forecaster of 16 x 16 pixels."""
    options |= {"backbone_options": BACKBONES[backbone], "dim": 8, "dim_mults": (1, 2)}
    return Architecture(backbone, use_diff, (1, 16, 16), **options)


def arguments(data, exp_dir, *more: str) -> list[str]:
    """Arguments of a tiny run; later ones win."""
    return [*SETTINGS, "--data_path", str(data), "--exp_dir", str(exp_dir), *more]


def run_py(*args: str, processes: int = 1, cwd=ROOT, script="run.py") -> subprocess.CompletedProcess:
    """Run the command line as a user would; several processes through `accelerate launch`."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
    return subprocess.run(
        [*launch, str(ROOT / script), *args],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def read_losses(run: Path) -> list[dict[str, float]]:
    """The rows of a run's losses.csv."""
    with (run / "losses.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


class InMemory(Sequences):
    """Sequences `(N, T, C, H, W)` as a data set."""

    def __init__(self, frames):
        self.frames = frames

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.frames[index]

    def sequence_id(self, index):
        return f"sequence {index}"
