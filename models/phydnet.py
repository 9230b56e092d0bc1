"""PhyDNet: a physically constrained recurrent cell beside a ConvLSTM.

Le Guen and Thome, "Disentangling Physical Dynamics from Unknown Factors for Unsupervised Video Prediction",
CVPR 2020, arXiv 2003.01460.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.backbone import Backbone
from utils.errors import InputError

GROUPS = 16  # of every group norm in the encoders and decoders

OFFICIAL_NAMES = [
    (r"^encoder\.encoder_E\.c(\d)\.main\.", r"encoder.\1."),
]


def conv_block(dim_in: int, dim_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, group norm, leaky ReLU; `stride` divides the resolution."""
    conv = nn.Conv2d(dim_in, dim_out, 3, stride, padding=1)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, dim_out), nn.LeakyReLU(0.2))


def deconv_block(dim_in: int, dim_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 transposed convolution, group norm, leaky ReLU; `stride` multiplies the resolution."""
    deconv = nn.ConvTranspose2d(dim_in, dim_out, 3, stride, padding=1, output_padding=stride - 1)
    return nn.Sequential(deconv, nn.GroupNorm(GROUPS, dim_out), nn.LeakyReLU(0.2))


class PhyCell(nn.Module):
    def __init__(self, dim: int = 64, kernel_size: int = 7):
        super().__init__()
        self.derivatives = nn.Conv2d(dim, kernel_size**2, kernel_size, padding=kernel_size // 2)
        self.norm = nn.GroupNorm(kernel_size, kernel_size**2)
        self.combine = nn.Conv2d(kernel_size**2, dim, 1)
        self.gate = nn.Conv2d(2 * dim, dim, 3, padding=1)
        offsets = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
        orders = torch.arange(kernel_size, dtype=torch.float64)
        basis = offsets ** orders[:, None] / torch.exp(torch.lgamma(orders + 1))[:, None]
        self.register_buffer("moment_basis", basis, persistent=False)

    def forward(self, features, state):
        predicted = state + self.combine(self.norm(self.derivatives(state)))
        gain = torch.sigmoid(self.gate(torch.cat([features, state], dim=1)))
        return predicted + gain * (features - predicted)

    def moment_errors(self):
        basis = self.moment_basis
        kernels = self.derivatives.weight.to(basis.dtype)
        moments = torch.einsum("pi,ncij,qj->cnpq", basis, kernels, basis).float()
        size = basis.shape[0]
        target = torch.eye(size**2, device=basis.device).unflatten(1, (size, size))
        return (moments - target).square().mean(dim=(1, 2, 3))


class ConvLSTMCell(nn.Module):
    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.gates = nn.Conv2d(dim_in + dim, 4 * dim, 3, padding=1)

    def forward(self, features, state):
        hidden, cell = state
        i, f, o, g = self.gates(torch.cat([features, hidden], dim=1)).chunk(4, dim=1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell


class PhyDNet(Backbone):
    def __init__(self, frame_shape=(1, 128, 128), frames_in=5, frames_out=20, dim=64, lstm_dims=(128, 128), kernel_size=7):
        super().__init__(frame_shape, frames_in, frames_out)
        c = frame_shape[0]
        stem = dim // 2
        self.encoder = nn.Sequential(conv_block(c, stem, 2), conv_block(stem, stem), conv_block(stem, dim, 2))
        self.physical_encoder = nn.Sequential(conv_block(dim, dim), conv_block(dim, dim))
        self.residual_encoder = nn.Sequential(conv_block(dim, dim), conv_block(dim, dim))
        self.physical_cell = PhyCell(dim, kernel_size)
        self.residual_cells = nn.ModuleList(ConvLSTMCell(i, o) for i, o in pairwise((dim, *lstm_dims, dim)))
        self.lstm_dims = (*lstm_dims, dim)
        self.physical_decoder = nn.Sequential(deconv_block(dim, dim), deconv_block(dim, dim))
        self.residual_decoder = nn.Sequential(deconv_block(dim, dim), deconv_block(dim, dim))
        self.decoder = nn.Sequential(deconv_block(dim, stem, 2), deconv_block(stem, stem),
            nn.ConvTranspose2d(stem, c, 3, 2, padding=1, output_padding=1))

    def rollout(self, frames_in):
        t = frames_in.shape[1]
        physical, residual = self.encode(frames_in.flatten(0, 1))
        physical = physical.unflatten(0, (-1, t)).unbind(1)
        residual = residual.unflatten(0, (-1, t)).unbind(1)
        h = torch.zeros_like(physical[0])
        states = [(torch.zeros_like(h[:, :1]).expand(-1, d, -1, -1),) * 2 for d in self.lstm_dims]
        hs, vs = [], []
        for p, r in zip(physical, residual):
            h, v, states = self.step(p, r, h, states)
            hs.append(h); vs.append(v)
        out = self.decode(torch.cat(hs), torch.cat(vs)).unflatten(0, (t, -1)).transpose(0, 1)
        recon, frame = out[:, :-1], out[:, -1]
        frames = [frame]
        for _ in range(self.frames_out - 1):
            p, r = self.encode(frame)
            h, v, states = self.step(p, r, h, states)
            frame = self.decode(h, v)
            frames.append(frame)
        return recon, torch.stack(frames, 1)

    def step(self, p, r, h, states):
        h = self.physical_cell(p, h)
        new = []
        for cell, state in zip(self.residual_cells, states):
            r, c = cell(r, state)
            new.append((r, c))
        return h, r, new

    def encode(self, x):
        f = self.encoder(x)
        return self.physical_encoder(f), self.residual_encoder(f)

    def decode(self, h, v):
        return torch.sigmoid(self.decoder(self.physical_decoder(h) + self.residual_decoder(v)))

    def forward(self, x, y, generator=None):
        recon, frames = self.rollout(x)
        loss = (recon - x[:, 1:]).square().mean((0, 2, 3, 4)).sum() + (frames - y).square().mean((0, 2, 3, 4)).sum() + self.physical_cell.moment_errors().sum()
        return {"loss": loss, "deterministic": loss, "forecast": frames}
