"""Lagrangian persistence, the baseline that a learnt trend has to beat."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from models.backbone import Backbone

COARSEST = 16  # pixels: the pyramid ends before a side gets shorter
WINDOW, PASSES = 21, 2  # pixels: two running means are about a Gaussian of standard deviation 8.6
ITERATIONS = 3  # per level
DAMPING = 1e-5  # squared gradient, about a byte per pixel; fainter structures do not move the estimate


class Advection(Backbone):
    """Advection of the last observed frame, without weights and gradients.

    Germann and Zawadzki (2002, Mon. Wea. Rev. 130): a steady motion field and semi-Lagrangian advection backwards in
    time, so that each forecast frame is interpolated once, from the last observed frame. No rain enters from outside.
    With a single observed frame, the forecast is persistence.
    """

    divisor = 1

    @torch.no_grad()
    def trend(self, observed: Tensor) -> Tensor:
        """See `Backbone.trend`; the forecast has no gradient."""
        frames = observed.float()
        return advect(frames[:, -1], estimate_motion(frames), self.frames_out)


def estimate_motion(frames: Tensor) -> Tensor:
    """Estimate a steady motion.

    Frames are `(B, T, C, H, W)` in [0, 1]. The motion is `(B, 2, H, W)`, x and y in pixels per frame.

    The method is that of Lucas and Kanade (1981), on all pairs of successive frames and all channels at once, on a
    pyramid of resolutions from coarse to fine. Where a level is dry, the motion of the coarser level stays, so that dry
    areas move with the rain around them.
    """
    channels = frames.shape[2]
    pyramid = [rearrange(frames, "b t c h w -> b (t c) h w")]
    while min(pyramid[-1].shape[-2:]) >= 2 * COARSEST:
        pyramid.append(F.avg_pool2d(pyramid[-1], 2, ceil_mode=True))
    motion = torch.zeros_like(pyramid[-1][:, :1]).repeat(1, 2, 1, 1)
    for level in reversed(pyramid):
        h, w = level.shape[-2:]
        if level is not pyramid[-1]:
            motion = 2 * F.interpolate(motion, scale_factor=2, mode="bilinear")[..., :h, :w]
        for _ in range(ITERATIONS if frames.shape[1] > 1 else 0):
            motion = motion + _correction(level[:, :-channels], level[:, channels:], motion)
    return motion


def advect(frame: Tensor, motion: Tensor, leads: int) -> Tensor:
    """Move a frame along a steady motion.

    The frame is `(B, C, H, W)` and the motion `(B, 2, H, W)`, x and y in pixels per frame. Returns
    `(B, leads, C, H, W)`. Each step back takes the motion halfway along it, so that rotating rain does not spiral
    outwards.
    """
    position = _pixels(frame)
    moved = []
    for _ in range(leads):
        step = _channels_last(_sample(motion, position, "border"))
        step = _channels_last(_sample(motion, position - step / 2, "border"))
        position = position - step
        moved.append(_sample(frame, position, "zeros"))
    return torch.stack(moved, dim=1)


def _correction(before: Tensor, after: Tensor, motion: Tensor) -> Tensor:
    """Gauss-Newton step `(B, 2, h, w)` of the motion between frames `(B, N, h, w)`.

    The frames are compared halfway, at the middle of a pixel's step, and only where both ends of the step lie inside
    the frame.
    """
    half = _channels_last(motion) / 2
    start, end = _pixels(before) - half, _pixels(before) + half
    before, after = _sample(before, start, "border"), _sample(after, end, "border")
    change = after - before
    dy, dx = torch.gradient((before + after) / 2, dim=(2, 3))
    products = torch.stack([dx * dx, dx * dy, dy * dy, dx * change, dy * change], dim=1).mean(dim=2)
    inside = _inside(start) & _inside(end)
    xx, xy, yy, xt, yt = _window_mean(products * inside[:, None]).unbind(1)
    xx, yy = xx + DAMPING, yy + DAMPING
    return torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / (xx * yy - xy * xy)[:, None]


def _window_mean(x: Tensor) -> Tensor:
    """Weighted mean `(B, C, h, w)` over the window, which is cut off at the border.

    Unlike a convolution, pooling stays in float32 under autocast.
    """
    for _ in range(PASSES):
        for size in ((WINDOW, 1), (1, WINDOW)):
            x = F.avg_pool2d(x, size, 1, (size[0] // 2, size[1] // 2), count_include_pad=False)
    return x


def _sample(fields: Tensor, positions: Tensor, beyond: str) -> Tensor:
    """Bilinear values of `(B, C, h, w)` at positions `(B, h, w, 2)` in pixels.

    `beyond` says what lies outside of the frame, `border` or `zeros`.
    """
    h, w = fields.shape[-2:]
    where = (2 * positions + 1) / positions.new_tensor([w, h]) - 1
    return F.grid_sample(fields, where.expand(len(fields), -1, -1, -1), padding_mode=beyond, align_corners=False)


def _inside(positions: Tensor) -> Tensor:
    """Mask `(B, h, w)` of positions `(B, h, w, 2)` that lie in the frame."""
    h, w = positions.shape[1:3]
    return ((positions >= 0) & (positions <= positions.new_tensor([w - 1, h - 1]))).all(dim=-1)


def _pixels(frame: Tensor) -> Tensor:
    """Positions `(1, h, w, 2)` of pixels, x and y."""
    y, x = (torch.arange(size, dtype=frame.dtype, device=frame.device) for size in frame.shape[-2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]


def _channels_last(field: Tensor) -> Tensor:
    return rearrange(field, "b c h w -> b h w c")
