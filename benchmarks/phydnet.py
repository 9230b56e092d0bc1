"""Time a training step of PhyDNet against a step-by-step form of its equations, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.phydnet [--batch_size 4] [--img_size 64] [--json result.json]

Both have the same weights, ours in the memory layout that the training gives them, and are timed in turn; the table
shows the median and the shortest step. The losses and gradients must agree.
"""

import argparse
import copy
import json
import math
import os
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcast.forecaster import place
from models.phydnet import PhyDNet


def direct_step(model: PhyDNet, frames_in: Tensor, frames_out: Tensor) -> Tensor:
    """The training loss frame by frame and kernel by kernel, as the equations read."""
    frames = torch.cat([frames_in, frames_out], dim=1).unbind(1)
    observed = frames_in.shape[1]
    batch, _, height, width = frames[0].shape
    zeros = [frames_in.new_zeros(batch, cell.dim, height // 4, width // 4) for cell in model.residual_cells]
    physical = zeros[-1]
    lstm = [(z, z) for z in zeros]
    loss = frames_in.new_zeros(())
    for t, target in enumerate(frames[1:]):
        features = model.encoder(frames[t] if t < observed else prediction)  # noqa: F821
        physical = model.physical_cell(model.physical_encoder(features), physical)
        residual = model.residual_encoder(features)
        for layer, cell in enumerate(model.residual_cells):
            lstm[layer] = direct_lstm(cell, residual, *lstm[layer])
            residual = lstm[layer][0]
        decoded = model.physical_decoder(physical) + model.residual_decoder(residual)
        prediction = torch.sigmoid(model.decoder(decoded))
        loss = loss + F.mse_loss(prediction, target)
    return loss + direct_moment_loss(model.physical_cell)


def direct_lstm(cell: nn.Module, inputs: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The next hidden state and memory of one ConvLSTM layer."""
    write, forget, read, candidate = cell.gates(torch.cat([inputs, hidden], dim=1)).chunk(4, dim=1)
    memory = torch.sigmoid(forget) * memory + torch.sigmoid(write) * torch.tanh(candidate)
    return torch.sigmoid(read) * torch.tanh(memory), memory


def direct_moment_loss(cell: nn.Module) -> Tensor:
    """The moment terms, one input channel after the other."""
    size = len(cell.moment_basis)
    basis = torch.tensor(
        [[(a - size // 2) ** i / math.factorial(i) for a in range(size)] for i in range(size)], dtype=torch.float64
    )
    derivatives = torch.eye(size**2).view(size**2, size, size)
    loss = torch.zeros(())
    for channel in range(cell.derivatives.in_channels):
        moments = basis @ cell.derivatives.weight[:, channel].double() @ basis.T
        loss = loss + F.mse_loss(moments.float(), derivatives)
    return loss


def seconds(model: PhyDNet, loss_of) -> tuple[float, float, float]:
    """Seconds of one training step (forward and backward), its loss, and the norm of its gradient."""
    model.zero_grad()
    start = time.perf_counter()
    loss = loss_of(model)
    loss.backward()
    elapsed = time.perf_counter() - start
    gradient = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    return elapsed, loss.item(), gradient.item()


def measure(batch_size: int, img_size: int, rounds: int) -> dict:
    """Time both forms `rounds` times in turn, after a step of each to warm up."""
    torch.manual_seed(0)
    plain = PhyDNet((1, img_size, img_size))
    placed = place(copy.deepcopy(plain), torch.device("cpu"))  # as the training does it
    frames_in = torch.rand(batch_size, 5, 1, img_size, img_size)
    frames_out = torch.rand(batch_size, 20, 1, img_size, img_size)
    forms = {
        "direct": (plain, lambda m: direct_step(m, frames_in, frames_out)),
        "models.phydnet": (placed, lambda m: m(frames_in, frames_out)["loss"]),
    }
    runs = {name: [] for name in forms}
    for _ in range(1 + rounds):
        for name, (model, loss_of) in forms.items():
            runs[name].append(seconds(model, loss_of))
    times = {name: [elapsed for elapsed, _, _ in run[1:]] for name, run in runs.items()}
    (_, loss, gradient), (_, direct_loss, direct_gradient) = runs["models.phydnet"][0], runs["direct"][0]
    return {
        "batch_size": batch_size,
        "img_size": img_size,
        "threads": torch.get_num_threads(),
        "seconds": {name: {"median": statistics.median(t), "shortest": min(t)} for name, t in times.items()},
        "speedup": statistics.median(times["direct"]) / statistics.median(times["models.phydnet"]),
        "loss_difference": abs(loss - direct_loss) / direct_loss,
        "gradient_difference": abs(gradient - direct_gradient) / direct_gradient,
    }


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description="Time a training step of PhyDNet.")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--img_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each form")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    result = measure(args.batch_size, args.img_size, args.rounds)
    size, threads = f"{args.batch_size} x {args.img_size}x{args.img_size}", result["threads"]
    print(f"PhyDNet training step, {size}, 5 -> 20 frames, {threads} threads")
    print(f"{'form':<16}{'median s':>10}{'shortest s':>12}")
    for name, t in result["seconds"].items():
        print(f"{name:<16}{t['median']:>10.3f}{t['shortest']:>12.3f}")
    print(
        f"speedup {result['speedup']:.2f}x, relative difference of the losses {result['loss_difference']:.0e}, ", end=""
    )
    print(f"of the gradient norms {result['gradient_difference']:.0e}")
    if args.json:
        temporary = args.json.with_name(args.json.name + ".tmp")
        temporary.write_text(json.dumps(result, indent=2))
        os.replace(temporary, args.json)


if __name__ == "__main__":
    main()
