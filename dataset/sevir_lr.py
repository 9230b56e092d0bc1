"""SEVIR-LR, SEVIR at a third of the resolution and half the frame rate.

Gao et al., "PreDiff: precipitation nowcasting with latent diffusion models", NeurIPS 2023.
"""

from dataset.sevir import Sevir
from dataset.source import VIL_10MIN


class SevirLR(Sevir):
    """SEVIR-LR, read like `Sevir`: events of 25 frames, 128 by 128 pixels, a frame every 10 minutes.

    The published task forecasts 6 frames from 7: `seq_len` 13.
    """

    source = VIL_10MIN
    event_frames = 25
    default_stride = 6  # frames: an hour, as the benchmark split has it for SEVIR
