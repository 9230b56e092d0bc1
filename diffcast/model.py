"""DiffCast: a deterministic backbone and a diffusion model of its residual."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property, lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from diffcast import motion, process, residual
from diffcast.layers import computing_in, full_precision, recomputed
from diffcast.motion import GlobalMotion
from diffcast.objectives import OBJECTIVES, Segments, crps_loss, diffusion_loss, hybrid_loss
from diffcast.residual import Denoiser, LocalResidual
from diffcast.samplers import SAMPLERS, Sampler
from diffcast.tiles import Tiles, blended_trend
from models import Backbone
from models.backbone import without_gaps
from utils.errors import InputError
from utils.official import prefixed

Generators = Generator | Sequence[Generator] | None  # a generator for the batch, or for each of its sequences


class Generated(NamedTuple):
    """A forecast and its parts, all without gradients."""

    forecast: Tensor  # (B, M, T, C, H, W) in [0, 1]
    trend: Tensor  # (B, T, C, H, W) in units of the frames, not clamped
    residual: Tensor  # (B, M, T, C, H, W) in units of [-1, 1] frames


class DiffCast(nn.Module):
    """Residual-diffusion forecaster (Yu et al., CVPR 2024, arXiv 2312.06734).

    The backbone forecasts the trend `mu`. The residual `r = x - mu` of the future `x`, both scaled to [-1, 1], is cut
    into segments of `segment_length` frames, which are generated one after the other. LocalResidual denoises a segment
    given GlobalMotion's context of observation and trend, the residual of the segment before, and the segment's index.
    A last segment that reaches beyond the forecast is filled with zero residual in training, and cut off in sampling.
    Raises `InputError` for impossible options.
    """

    loss_terms = ("loss", "deterministic", "diffusion")
    trained_on: object = None  # what a checkpoint says about its frames, see `describe_source`

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 64,  # width of the diffusion networks
        dim_mults: tuple[int, ...] = (1, 2, 4, 8),  # their widths per level, in units of dim
        segment_length: int | None = None,  # frames of a segment; None: as many as are observed
        timesteps: int = 1000,  # of the diffusion process
        diffusion_weight: float = 0.5,  # share of the diffusion loss in the total, the paper's alpha
        freeze_backbone: bool = False,  # no gradient and no loss term of the backbone, which stays in evaluation mode
        residual_scale: float = 1.0,  # divide residuals by this; recommended: their standard deviation, about 0.2
        loss_weight: str = "signal",  # weight of diffusion times in the loss, see `process.weighted_loss`
        gradient_checkpointing: bool = False,  # recompute most activations in the backward pass, to save memory
        objective: str = "diffusion",  # a key of OBJECTIVES
        particles: int = 2,  # of each segment, that a CRPS compares
        crps_fairness: float = 1.0,  # see `objectives.crps`
        crps_scales: tuple[int, ...] = (1, 2),  # sides of the squares whose means the CRPS compares, pixels
    ):
        super().__init__()
        _check(backbone, dim, dim_mults, segment_length)
        if objective not in OBJECTIVES:
            raise InputError(f"objective must be one of {', '.join(OBJECTIVES)}, not {objective}.")
        if particles < 2:
            raise InputError(f"particles must be at least 2, not {particles}.")
        if not 0 < diffusion_weight <= 1:
            raise InputError(f"diffusion_weight must lie in (0, 1], not {diffusion_weight}.")
        if not 0 < residual_scale <= 2:
            raise InputError(f"residual_scale must lie in (0, 2], not {residual_scale}.")
        self.segment_length = segment_length or backbone.frames_in
        self.diffusion_weight = 1.0 if freeze_backbone else diffusion_weight
        self.freeze_backbone = freeze_backbone
        self.residual_scale = residual_scale
        self.loss_weight = loss_weight
        self.gradient_checkpointing = gradient_checkpointing
        self.objective, self.particles = objective, particles
        self.crps_fairness, self.crps_scales = crps_fairness, crps_scales
        self.segments = math.ceil(backbone.frames_out / self.segment_length)
        channels = backbone.frame_shape[0]
        self.backbone = backbone
        self.motion = GlobalMotion(channels, dim, dim_mults, gradient_checkpointing)
        self.residual = LocalResidual(
            channels, self.segment_length, dim, dim_mults, gradient_checkpointing, OBJECTIVES[objective].auxiliary
        )
        self.schedule = process.Schedule(timesteps)
        if freeze_backbone:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "DiffCast":
        """Set the mode as `nn.Module` does, but keep a frozen backbone in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and not self.freeze_backbone)
        return self

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a frame."""
        return self.backbone.frame_shape

    @property
    def frames_in(self) -> int:
        """Number of observed frames."""
        return self.backbone.frames_in

    @property
    def frames_out(self) -> int:
        """Number of forecast frames."""
        return self.backbone.frames_out

    @property
    def divisor(self) -> int | None:
        """See `Backbone.divisor`."""
        return self.backbone.divisor and math.lcm(self.backbone.divisor, 2 ** (len(self.motion.levels) - 1))

    def forward(self, observed: Tensor, future: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """Training pass.

        Frames are `(B, T, C, H, W)` in [0, 1], NaN where values are missing. Returns the scalar `loss` and its parts
        `deterministic` and `diffusion`, the loss of LocalResidual. Times and noise are drawn from `generator`. With a
        generator for each sequence, the draws do not depend on the distribution of a batch over processes.
        """
        b, frame, device = len(observed), observed.shape[2:], observed.device
        of_particles = (self.particles,) if self.objective == "crps" else ()
        time = self._draw_times(b, generator, device)
        noise = _draw(torch.randn, b, (self.segments, *of_particles, self.segment_length, *frame), generator, device)
        auxiliary = self._draw_auxiliary(b, (self.segments, self.particles), frame[1:], generator, device)
        return self.training_loss(observed, future, time, noise, auxiliary)

    def _draw_times(self, sequences: int, generator: Generators, device: torch.device) -> Tensor:
        """Draw uniform diffusion times `(B, S)`, stratified within each sequence.

        The S times of a sequence lie in different S-th parts of the schedule. The loss is less noisy than with
        independent times.
        """
        part = _draw(torch.rand, sequences, (self.segments,), generator, device).argsort(dim=1)
        within = _draw(torch.rand, sequences, (1,), generator, device)
        share = (part + within) / self.segments
        return (share * self.schedule.timesteps).long().clamp(max=self.schedule.timesteps - 1)

    def _draw_auxiliary(
        self, sequences: int, each: tuple[int, ...], size: tuple[int, int], generator: Generators, device: torch.device
    ) -> Tensor | None:
        """Draw noise `(B, *each, N, H, W)` of LocalResidual's auxiliary channels, None if it has none."""
        if not self.residual.auxiliary:
            return None
        return _draw(torch.randn, sequences, (*each, self.residual.auxiliary, *size), generator, device)

    def training_loss(
        self,
        observed: Tensor,
        future: Tensor,
        time: Tensor,  # (B, S)
        noise: Tensor,  # (B, S, L, C, H, W), or (B, S, M, L, C, H, W) for the objective crps
        auxiliary: Tensor | None = None,  # (B, S, M, N, H, W) for the objective hybrid
    ) -> dict[str, Tensor]:
        """Training pass with given diffusion times and noise of the S segments.

        All segments go through LocalResidual at once, each conditioned on the residual of the segment before. Nothing
        is detached, so that the loss of LocalResidual also trains the backbone, through residual, condition and
        context. Missing values have no residual and no weight in the loss.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_backbone):
            trend = recomputed(self.gradient_checkpointing, self.backbone, observed, future)
        mu = 2 * trend["forecast"].float() - 1
        valid = self._to_segments(~future.isnan(), beyond=True)
        target = self._to_segments((2 * future - 1 - mu) / self.residual_scale).where(valid, 0)
        local, last = self._context(2 * without_gaps(observed) - 1, mu)
        previous = F.pad(target, (0, 0) * 4 + (1, 0))[:, :-1]
        context = [
            rearrange([first] + [later] * (self.segments - 1), "s b c h w -> (b s) c h w")
            for first, later in zip(local, last, strict=True)
        ]
        index = torch.arange(self.segments, device=time.device).repeat(len(observed))
        given = {"condition": previous.flatten(0, 1), "context": context, "segment": index}
        if auxiliary is not None:
            given["auxiliary"] = auxiliary.flatten(0, 2)
        segments = Segments(partial(self.residual, **given), self.schedule, target.flatten(0, 1), valid.flatten(0, 1))
        diffusion = self._loss_of(segments, time.flatten(), noise.flatten(0, 1))
        loss = self.diffusion_weight * diffusion + (1 - self.diffusion_weight) * trend["loss"]
        return {"loss": loss, "deterministic": trend["loss"], "diffusion": diffusion}

    def _loss_of(self, segments: Segments, time: Tensor, noise: Tensor) -> Tensor:
        """Loss of LocalResidual by the objective."""
        if self.objective == "crps":
            return crps_loss(segments, noise, self.crps_fairness, self.crps_scales)
        if self.objective == "hybrid":
            return hybrid_loss(segments, time, noise, self.particles, self.crps_fairness, self.crps_scales)
        return diffusion_loss(segments, time, noise, self.loss_weight)

    def forecast(self, observed: Tensor, members: int = 1, generator: Generators = None, **sampling) -> Tensor:
        """Forecast an ensemble `(B, M, T, C, H, W)` in [0, 1]; options as in `generate`."""
        return self.generate(observed, members, generator, **sampling).forecast

    # Not `torch.inference_mode`, in which autocast would convert every weight anew at every call.
    @torch.no_grad()
    def generate(
        self,
        observed: Tensor,  # (B, T_in, C, H, W) in [0, 1], of any height and width
        members: int = 1,  # draws of the residual for each sequence
        generator: Generators = None,  # of the start noise, and of what a stochastic sampler adds
        sampler: str | Sampler = "ddim",  # a key of SAMPLERS, or a function as `diffcast.samplers` describes
        sampling_steps: int = 250,  # network evaluations per segment
        noise: Tensor | None = None,  # (B, M, S, L, C, H, W): replaces the drawn start noise
        forecast_batch: int | None = None,  # frames of `frame_shape` at a time, to bound the memory; None: B M
        precision: torch.dtype = torch.float32,  # of the computations in the diffusion networks
        compiled: bool = False,  # use torch.compile for LocalResidual; the first forecast then takes minutes
        progress: Callable[[float], object] | None = None,  # called with each share of a segment that was made
        tile: int | None = None,  # pixels of the tiles that larger maps are cut into, see `Tiles.of`
    ) -> Generated:
        """Forecast an ensemble, and return its parts too.

        Backbone and GlobalMotion run once for all members. The noise of a member depends on the generator alone, and
        neither on the tiles nor on the forecasts that are computed at the same time.
        """
        b, device = len(observed), observed.device
        if noise is None:
            shape = (members, self.segments, self.segment_length, *observed.shape[2:])
            noise = _draw(torch.randn, b, shape, generator, device)
        seeds = _draw(partial(torch.randint, 2**63 - 1), b, (noise.shape[1],), generator, device)
        auxiliary = self._draw_auxiliary(b, noise.shape[1:3], observed.shape[-2:], generator, device)
        tiles = Tiles.of(tuple(observed.shape[-2:]), self, tile)
        at_once = tiles.at_once(self, forecast_batch or b * noise.shape[1])
        with full_precision(observed):  # rounding would move pixels across thresholds, and the backbone runs only once
            mu = 2 * blended_trend(self.backbone, observed, tile, at_once // b) - 1
        sample = partial(
            _find_sampler(sampler), schedule=self.schedule, steps=sampling_steps, clip=1 / self.residual_scale
        )
        transform = torch.compile if compiled else lambda denoise: denoise

        def tell(evaluations: int) -> None:
            if progress is not None:
                progress(evaluations / (sampling_steps * len(tiles.corners)))

        drawn = mu.new_empty(b, noise.shape[1], *mu.shape[1:])
        with computing_in(precision, observed):
            contexts = self._contexts(2 * observed - 1, mu, tiles, at_once // b)
            for rows, columns in _chunks(*noise.shape[:2], at_once):
                local, last = ([x[:, rows] for x in maps] for maps in contexts)
                drawing = partial(sample, draw=_drawing(seeds[rows, columns]))
                fixed = None if auxiliary is None else auxiliary[rows, columns]
                denoise = partial(self._denoiser, tiles=tiles, at_once=at_once, transform=transform, tell=tell)
                residual = self._sample_residual(noise[rows, columns], fixed, local, last, drawing, denoise)
                drawn[rows, columns] = self.residual_scale * residual
        del noise  # of the size of the forecast, of which large maps make gigabytes
        forecast = (mu[:, None] + drawn).add_(1).div_(2).clamp_(0, 1)
        return Generated(forecast, (mu + 1) / 2, drawn)

    def _contexts(self, frames: Tensor, mu: Tensor, tiles: Tiles, at_once: int) -> list[list[Tensor]]:
        """Return local and global context of N tiles, each a list of maps `(N, B, C, h, w)`."""
        parts = [self._context(tiles.cut(frames, part), tiles.cut(mu, part)) for part in tiles.parts(at_once)]
        return [
            [torch.cat(maps).unflatten(0, (-1, len(frames))) for maps in zip(*levels, strict=True)]
            for levels in zip(*parts, strict=True)
        ]

    def _sample_residual(
        self,
        noise: Tensor,
        auxiliary: Tensor | None,
        local: list[Tensor],
        last: list[Tensor],
        sample,
        denoiser,
    ) -> Tensor:
        """Generate segment after segment.

        Start noise `(B, M, S, L, C, H, W)` and auxiliary noise `(B, M, S, N, H, W)`, which is the same at all
        evaluations of a segment, give scaled residuals `(B, M, T, C, H, W)`.
        """
        b = len(noise)
        segments = []
        previous = torch.zeros_like(noise[:, :, 0]).flatten(0, 1)
        for s, start in enumerate(rearrange(noise, "b m s ... -> s (b m) ...")):
            index = torch.full((b,), s, device=start.device)
            fixed = None if auxiliary is None else auxiliary[:, :, s].flatten(0, 1)
            previous = sample(denoiser(previous, fixed, last if s else local, index), start)
            segments.append(previous)
        return rearrange(segments, "s (b m) l c h w -> b m (s l) c h w", b=b)[:, :, : self.frames_out]

    def _denoiser(
        self,
        previous: Tensor,
        auxiliary: Tensor | None,
        context: list[Tensor],
        index: Tensor,
        tiles: Tiles,
        at_once: int,
        transform,
        tell: Callable[[int], object],
    ) -> Denoiser:
        """Return the denoiser of maps `(B M, L, C, H, W)`, given the residual of the segment before and a noise."""

        @lru_cache(1)  # so that a single part is conditioned once, while several would need the memory of the map
        def conditioned(part: range) -> Denoiser:
            own = [maps[part.start : part.stop].flatten(0, 1) for maps in context]
            noise = None if auxiliary is None else tiles.cut(auxiliary, part)
            return transform(self.residual.conditioned(tiles.cut(previous, part), own, index.repeat(len(part)), noise))

        def denoise(noisy: Tensor, time: Tensor) -> Tensor:
            def of_tiles(part: range) -> Tensor:
                v = conditioned(part)(tiles.cut(noisy, part), time.repeat(len(part)))
                tell(len(v))
                return v

            return tiles.blend(of_tiles, len(noisy), at_once // len(noisy))

        return denoise

    def _context(self, frames: Tensor, mu: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return local and global context of frames and trend, both in [-1, 1]."""
        return self.motion(torch.cat([frames, mu], dim=1), local_at=frames.shape[1])

    def _to_segments(self, frames: Tensor, beyond: float = 0) -> Tensor:
        """Cut `(B, T, C, H, W)` into `(B, S, L, C, H, W)`, filled up with `beyond`."""
        missing = self.segments * self.segment_length - frames.shape[1]
        padded = F.pad(frames, (0, 0) * 3 + (0, missing), value=beyond)
        return rearrange(padded, "b (s l) c h w -> b s l c h w", s=self.segments)

    @cached_property
    def official_names(self) -> list[tuple[str, str]]:
        """See `utils.official`."""
        return [
            *prefixed(residual.OFFICIAL_NAMES, "model.", "residual."),
            *prefixed(motion.OFFICIAL_NAMES, "ctx_net.", "motion."),
            *prefixed(self.backbone.official_names, "backbone_net.", "backbone."),
        ]

    @cached_property
    def official_dropped(self) -> list[str]:
        """See `utils.official`; the schedule, and entries that the backbone drops."""
        backbone = [r"^backbone_net\." + pattern.removeprefix("^") for pattern in self.backbone.official_dropped]
        schedule = (
            r"^(betas|(log_|sqrt_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)?|posterior_\w+|loss_weight)$"
        )
        return [schedule, *backbone]


build_diffcast = DiffCast  # the counterpart of `models.build_backbone`


def _check(backbone: Backbone, dim: int, dim_mults: tuple[int, ...], segment_length: int | None) -> None:
    """Raise `InputError` for impossible networks."""
    _, height, width = backbone.frame_shape
    multiple = 2 ** (len(dim_mults) - 1)
    if not dim_mults or min(dim_mults) < 1:
        raise InputError(f"dim_mults must be positive numbers, not {' '.join(map(str, dim_mults)) or 'none'}.")
    if height % multiple or width % multiple:
        raise InputError(
            f"frames of {height} x {width} pixels do not fit the {len(dim_mults)} levels of dim_mults; choose a "
            f"multiple of {multiple} pixels or fewer levels."
        )
    if dim < 8 or dim % 8:
        raise InputError(f"dim must be a positive multiple of 8, not {dim}.")
    if segment_length is not None and not 1 <= segment_length <= backbone.frames_out:
        raise InputError(
            f"segment_length must lie between 1 and frames_out ({backbone.frames_out}), not {segment_length}."
        )


def _find_sampler(sampler: str | Sampler) -> Sampler:
    if callable(sampler):
        return sampler
    if sampler not in SAMPLERS:
        raise InputError(f"unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}, or pass a function.")
    return SAMPLERS[sampler]


def _draw(distribution, batch: int, shape: tuple[int, ...], generator: Generators, device) -> Tensor:
    """Draw `(batch, *shape)`, sequence by sequence if each has its own generator."""
    if isinstance(generator, Sequence):
        return torch.stack([distribution(shape, generator=own, device=device) for own in generator])
    return distribution((batch, *shape), generator=generator, device=device)


def _drawing(seeds: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that draws standard normal noise like its argument `(B M, ...)`.

    Each sample has its own generator.
    """

    @cache  # made at the first draw, as most samplers draw nothing, and reading the seeds waits for the device
    def generators() -> list[Generator]:
        return [torch.Generator(seeds.device).manual_seed(seed) for seed in seeds.flatten().tolist()]

    return lambda x: _draw(torch.randn, len(x), x.shape[1:], generators(), x.device)


def _chunks(sequences: int, members: int, at_once: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield slices of sequences and of members that make at most `at_once` forecasts together.

    All slices have about the same size.
    """
    at_once = at_once or sequences * members
    member_step = math.ceil(members / math.ceil(members / at_once))
    sequence_step = max(1, at_once // member_step)
    for sequence, member in itertools.product(range(0, sequences, sequence_step), range(0, members, member_step)):
        yield slice(sequence, sequence + sequence_step), slice(member, member + member_step)
