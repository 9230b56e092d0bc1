"""Maps of any size in tiles of the size that a network was trained on.

Tiles overlap, and their results are blended with weights that fall to zero at the edges of a tile. In the diffusion,
each evaluation of the denoiser is blended on the map, as in MultiDiffusion (Bar-Tal et al., ICML 2023, arXiv
2302.08113). All tiles see the same noise at the same place, so that members have no seams.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from einops import rearrange
from torch import Tensor, nn

from models.backbone import Backbone
from utils.errors import InputError

OVERLAP = 4  # neighbouring tiles share at least the fourth part of a tile
Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class Tiles:
    """Overlapping tiles that cover a map.

    A map that is smaller than a tile is mirrored at its lower and at its right edge.
    """

    map_size: Size
    size: Size

    @classmethod
    def of(
        cls,
        map_size: Size,
        network: nn.Module,  # a backbone or DiffCast
        tile: int | None = None,  # height and width of a tile; None: those of the network's frames; 0: of the map
    ) -> "Tiles":
        """The tiles for a network; raises `InputError` if it takes none of that size."""
        trained, divisor = network.frame_shape[1:], network.divisor
        if tile is None or trained in (map_size, (tile, tile)):
            return cls(map_size, trained)
        if divisor is None:
            raise InputError(f"tile must be {trained[0]} x {trained[1]}, as the backbone takes no other; leave it out.")
        if tile < 0 or tile % divisor:
            raise InputError(f"tile must be 0 or a multiple of {divisor} pixels for these networks, not {tile}.")
        return cls(map_size, (tile, tile) if tile else tuple(divisor * -(-pixels // divisor) for pixels in map_size))

    @cached_property
    def corners(self) -> list[tuple[int, int]]:
        """First row and first column of each tile."""
        rows, columns = (_weights(*sizes) for sizes in zip(self.map_size, self.size, strict=True))
        return [(row, column) for row in rows for column in columns]

    def at_once(self, network: nn.Module, frames: int) -> int:
        """Number of tiles, at least one, that need the memory of so many frames of a network."""
        return max(1, frames * math.prod(network.frame_shape[1:]) // math.prod(self.size))

    def parts(self, at_once: int) -> list[range]:
        """Numbers of the tiles, in parts of at most `at_once` and of similar length."""
        number = len(self.corners)
        step = math.ceil(number / math.ceil(number / max(1, at_once)))
        return [range(begin, min(begin + step, number)) for begin in range(0, number, step)]

    def cut(self, maps: Tensor, part: range) -> Tensor:
        """Cut tiles `(N B, ..., h, w)` out of maps `(B, ..., H, W)`."""
        corners = torch.tensor(self.corners[part.start : part.stop], device=maps.device)
        rows, columns = (
            _mirrored(starts[:, None] + torch.arange(size, device=maps.device), map_size)
            for starts, size, map_size in zip(corners.unbind(1), self.size, self.map_size, strict=True)
        )
        tiles = maps[..., rows[:, :, None], columns[:, None, :]]
        return rearrange(tiles, "b ... n h w -> (n b) ... h w")

    def blend(self, results: Callable[[range], Tensor], maps: int, at_once: int) -> Tensor:
        """Blend tiles to maps `(B, ..., H, W)`, where B is the number of `maps`.

        `results` returns `(N B, ..., h, w)` for the numbers of N tiles.
        """
        blended = None
        for part in self.parts(at_once):
            tiles = results(part).unflatten(0, (len(part), maps))
            if blended is None:
                blended = tiles.new_zeros(*tiles.shape[1:-2], *self.map_size)
            for number, tile in zip(part, tiles, strict=True):
                self._add(blended, tile, *self.corners[number])
        return blended

    def _add(self, blended: Tensor, tile: Tensor, row: int, column: int) -> None:
        high, wide = (_weights(*sizes) for sizes in zip(self.map_size, self.size, strict=True))
        weights = (high[row][:, None] * wide[column]).to(tile)
        height, width = weights.shape
        blended[..., row : row + height, column : column + width] += weights * tile[..., :height, :width]


def blended_trend(backbone: Backbone, observed: Tensor, tile: int | None, at_once: int) -> Tensor:
    """Forecast the trend `(B, T, C, H, W)` of maps of any size.

    `at_once` is the number of frames that are forecast together. A backbone without weights forecasts the map as one.
    """
    learnt = any(True for _ in backbone.parameters())
    tiles = Tiles.of(observed.shape[-2:], backbone, tile if learnt or backbone.divisor is None else 0)
    return tiles.blend(lambda part: backbone.trend(tiles.cut(observed, part)).float(), len(observed), at_once)


@lru_cache
def _weights(length: int, tile: int) -> dict[int, Tensor]:
    """Weights of the tiles along a side by the first pixel; the sum is 1 at every pixel."""
    overlap = tile // OVERLAP
    number = max(1, math.ceil((length - overlap) / (tile - overlap)))
    starts = [round(n * (length - tile) / max(1, number - 1)) for n in range(number)]
    place = torch.arange(tile) + 0.5
    ramp = (torch.minimum(place, tile - place) / max(1, overlap)).clamp(max=1)
    weight = (math.pi / 2 * ramp).sin().square()
    total = torch.zeros(max(length, tile))
    for start in starts:
        total[start : start + tile] += weight
    return {start: (weight / total[start : start + tile])[:length] for start in starts}


def _mirrored(places: Tensor, length: int) -> Tensor:
    """Indices from 0 to `length` for places beyond it, back and forth."""
    there = places % (2 * length)
    return torch.minimum(there, 2 * length - 1 - there)
