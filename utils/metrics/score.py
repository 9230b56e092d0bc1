"""The base of all scores, a state of sums that can be split and merged."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK_VALUES = 2**19  # forecast values scored at once: bounds the memory, and small buffers are reused, not mapped anew


class Score(ABC):
    """Scores over a stream of forecasts, computed from sums alone.

    The state is a dict of int64 and float64 tensors, zero at the start. Whatever the split of the data into
    batches or processes, the sums of the states are the same, so that a reduction over processes reads

        score.load_state({name: reduce_sum(tensor) for name, tensor in score.state().items()})

    What a sequence adds to the sums does not depend on the others, and `update` returns it: a bootstrap over
    sequences loads the terms, weighted by how often each sequence was drawn and summed, and computes again.

    The state lives on the device of the data last seen. A subclass hands zeros to the constructor and
    implements `terms` and `compute`.
    """

    def __init__(
        self,
        leads: int,  # T, forecast frames
        sums: Mapping[str, Tensor],  # the state before any data
    ):
        self.leads = leads
        self._sums = dict(sums)

    @torch.no_grad()
    def update(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Add forecasts `(B, M, T, C, H, W)` of the targets `(B, T, C, H, W)`, both in [0, 1].

        Values beyond the range are clipped. A pixel that is NaN in the target or in any member is missing:
        it counts nowhere. Returns the terms that were added, by the names of the state and per sequence: the
        shape of a sum behind a leading B. Raises `ValueError` if the shapes do not fit.
        """
        self._check_shapes(forecast, target)
        if not len(target):
            return {name: sums.new_zeros(0, *sums.shape) for name, sums in self.state().items()}
        if forecast.device.type == "mps":  # Apple's GPUs lack float64
            forecast, target = forecast.cpu(), target.cpu()
        sequences = max(1, BLOCK_VALUES // forecast.shape[1:].numel())
        blocks = zip(forecast.split(sequences), target.split(sequences), strict=True)
        parts = [self._masked_terms(*block) for block in blocks]
        terms = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self._replace({name: sums.to(terms[name].device) + terms[name].sum(0) for name, sums in self.state().items()})
        return terms

    @abstractmethod
    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return what each sequence adds to the sums: `(B, ...)` by the names of the state.

        `update` calls it with float32 fields clipped to [0, 1]; where a pixel is missing, the target is NaN and
        the forecast 0.
        """

    @abstractmethod
    def compute(self) -> dict:
        """Return the scores as plain floats, integers and lists, NaN where a score is undefined."""

    def state(self) -> dict[str, Tensor]:
        """Return the sums by name."""
        return dict(self._sums)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace the sums by `state`. Raises `ValueError` if names or shapes are not those of this score."""
        self._check_state(state)
        self._replace(state)

    def merge(self, other: "Score") -> None:
        """Add the sums of `other`, built with the same arguments. Raises `ValueError` as `load_state` does."""
        theirs = other.state()
        self._check_state(theirs)
        self._replace({name: mine + theirs[name].to(mine.device) for name, mine in self.state().items()})

    def _masked_terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The terms of fields as `update` got them."""
        return self.terms(*_prepare(forecast, target))

    def _replace(self, state: Mapping[str, Tensor]) -> None:
        self._sums = dict(state)

    def _check_state(self, state: Mapping[str, Tensor]) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in self.state().items()}
        if shapes != expected:
            raise ValueError(f"the state holds {shapes}, but this score needs {expected}.")

    def _check_shapes(self, forecast: Tensor, target: Tensor) -> None:
        if forecast.ndim != 6 or target.ndim != 5 or forecast[:, 0].shape != target.shape:
            raise ValueError(
                f"a forecast {tuple(forecast.shape)} does not fit a target {tuple(target.shape)}: "
                "expected (B, M, T, C, H, W) and (B, T, C, H, W)."
            )
        if target.shape[1] != self.leads:
            raise ValueError(f"the score was built for {self.leads} lead times, but got {target.shape[1]}.")


def check_members(forecast: Tensor, members: int) -> None:
    """Raise `ValueError` if the forecast `(B, M, ...)` has another number of members."""
    if forecast.shape[1] != members:
        raise ValueError(f"the score was built for {members} members, but got {forecast.shape[1]}.")


def split_missing(target: Tensor) -> tuple[Tensor, Tensor | None]:
    """Separate a target from its missing pixels.

    Returns it with 0 in place of NaN, and the mask of the missing pixels, None if there are none.
    """
    if not torch.isnan(target.sum()):  # several times faster than looking at every pixel
        return target, None
    missing = torch.isnan(target)
    return target.masked_fill(missing, 0), missing


def pixel_sum(values: Tensor) -> Tensor:
    """Sum fields `(..., C, H, W)` in float64; float32 is exact enough along a row, not over a frame."""
    return values.sum(dim=-1).double().sum(dim=(-2, -1))


def pixel_sum_of_squares(values: Tensor) -> Tensor:
    """Sum the squares of fields `(..., C, H, W)`, as `pixel_sum` does."""
    return torch.linalg.vector_norm(values, dim=-1).double().square().sum(dim=(-2, -1))


def frame_histograms(bins: Tensor, number: int, missing: Tensor | None) -> Tensor:
    """Count the valid pixels of each bin.

    Bins are `(B, T, C, H, W)`, and the counts are int32 `(B, T, number)`.
    """
    if missing is not None:
        bins = bins.masked_fill(missing, number)
    batch, leads = bins.shape[:2]
    frame = torch.arange(batch * leads, dtype=torch.int32, device=bins.device).view(batch, leads, 1, 1, 1)
    counts = torch.bincount((frame * (number + 1) + bins).flatten(), minlength=batch * leads * (number + 1))
    return counts.view(batch, leads, number + 1)[..., :-1]


class ScoreGroup(Score):
    """Several scores of the same data.

    The state holds the sums of each part as `part/name`.
    """

    def __init__(
        self,
        leads: int,  # T, forecast frames
        parts: Mapping[str, Score],
    ):
        super().__init__(leads, {})
        self.parts = dict(parts)

    def terms(self, forecast: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the terms of every part."""
        return {
            f"{key}/{name}": term
            for key, part in self.parts.items()
            for name, term in part.terms(forecast, target).items()
        }

    def compute(self) -> dict:
        """Return the scores of all parts in one dict."""
        return {name: value for part in self.parts.values() for name, value in part.compute().items()}

    def state(self) -> dict[str, Tensor]:
        """Return the sums of all parts."""
        return {f"{key}/{name}": tensor for key, part in self.parts.items() for name, tensor in part.state().items()}

    def _replace(self, state: Mapping[str, Tensor]) -> None:
        for key, part in self.parts.items():
            part.load_state({name: state[f"{key}/{name}"] for name in part.state()})


def _prepare(forecast: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    forecast = forecast.float().clamp(0, 1)
    target = target.float().clamp(0, 1)
    if torch.isnan(forecast.sum() + target.sum()):
        missing = torch.isnan(target + forecast.sum(dim=1))  # a sum is NaN if any of its terms is
        forecast = forecast.masked_fill(missing[:, None], 0)
        target = target.masked_fill(missing, torch.nan)
    return forecast, target
