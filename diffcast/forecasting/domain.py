"""The part of a map that radars see."""

from torch import Tensor

Part = tuple[slice, slice]  # rows and columns


def observed_part(frames: Tensor) -> Part:
    """The smallest part of frames `(..., H, W)` that holds all their valid pixels, everything if there are none."""
    valid = ~frames.isnan().flatten(0, -3).all(0)
    return tuple(_extent(valid.any(dim)) for dim in (1, 0))


def put_back(parts: Tensor, part: Part, size: tuple[int, int]) -> Tensor:
    """Place a part `(..., h, w)` into maps `(..., H, W)` that are 0 elsewhere."""
    maps = parts.new_zeros(*parts.shape[:-2], *size)
    maps[(..., *part)] = parts
    return maps


def _extent(valid: Tensor) -> slice:
    places = valid.nonzero()
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(None)
