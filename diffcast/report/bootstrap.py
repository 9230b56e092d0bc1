"""Paired bootstrap over events: confidence intervals of the difference between two runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from diffcast.report.evaluation import Entry, Evaluation
from utils.errors import InputError
from utils.metrics import ScoreGroup, Scores

REPLICATES = 1000
SEED = 0
LEVEL = 0.95
MOST_UNDEFINED = 0.05  # share of replicates; beyond it a score has no interval
COMPARED = ("csi", "csi_pool4", "csi_pool16", "hss", "crps", "crps_fair", "mae", "ssim")
PARTS = ("categorical", "errors", "similarity", "ensemble")  # of `Scores`, that give these
RARE_EVENTS = 2  # highest thresholds whose own CSI is compared as well
SAME = ("name", "scale", "offset", "thresholds", "interval", "frame_shape", "frames_in", "frames_out")


class Difference(NamedTuple):
    """Difference to the reference with its bootstrap interval, NaN if undefined."""

    value: float
    low: float
    high: float


def differences(
    entries: Sequence[Entry],  # the first one is the reference
    replicates: int,
    seed: int = SEED,
) -> tuple[list[dict[str, Difference]], dict[str, float]]:
    """Score the entries relative to the first, with 95 % percentile intervals.

    Events are drawn with replacement, each with all its sequences, since sequences of one storm resemble each other.
    The same events are drawn for every entry, so that the difficulty of an event cancels (Efron and Tibshirani 1993;
    Hamill 1999, Wea. Forecasting 14). The score of a replicate is computed from the sums over the drawn sequences. It
    is not a mean of scores per sequence.

    Returns the differences of each further entry, and the scores of the first.

    Raises `InputError` unless all entries score the same sequences of the same source.
    """
    ids = common_ids([entry.evaluation for entry in entries])
    events = entries[0].evaluation.events
    weights = resampling_weights([events[name] for name in ids], replicates, seed)
    reference, *others = (replicated_scores(entry, ids, weights) for entry in entries)
    found = [{key: difference(other[key] - reference[key]) for key in reference} for other in others]
    return found, {key: float(replicas[0]) for key, replicas in reference.items()}


def common_ids(evaluations: Sequence[Evaluation]) -> list[str]:
    """The sorted ids of the scored sequences.

    Raises `InputError` if the evaluations differ in them.
    """
    first, *others = evaluations
    for other in others:
        source, its = (evaluation.source for evaluation in (first, other))
        for key in SAME:
            if source.get(key) != its.get(key):
                raise InputError(
                    f"{first.folder} and {other.folder} cannot be compared: {key} is {source.get(key)} in the one and "
                    f"{its.get(key)} in the other."
                )
        mine, theirs = set(first.events), set(other.events)
        if mine != theirs:
            raise InputError(
                f"{first.folder} scores {len(mine)} sequences and {other.folder} {len(theirs)}, of which "
                f"{len(mine & theirs)} are common; evaluate both on the same data and number of sequences."
            )
    return sorted(first.events)


def resampling_weights(events: Sequence[str], replicates: int, seed: int) -> np.ndarray:
    """Count how often each replicate draws each sequence, `(1 + replicates, n)`.

    The first row is all ones. `events` names the event of each sequence.
    """
    names, of_event = np.unique(np.asarray(events), return_inverse=True)
    share = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(seed).multinomial(len(names), share, size=replicates)[:, of_event]
    return np.concatenate([np.ones((1, len(events)), dtype=drawn.dtype), drawn]).astype(np.int32)


def replicated_scores(entry: Entry, ids: Sequence[str], weights: np.ndarray) -> dict[str, np.ndarray]:
    """The compared scores `(1 + replicates,)` of an entry.

    The columns of `weights` stand for `ids`.
    """
    score = compared_score(entry)
    column = {name: i for i, name in enumerate(ids)}
    state = score.state()
    sums = {name: np.zeros((len(weights), zero.numel())) for name, zero in state.items()}
    for part_ids, terms in entry.evaluation.parts.terms(entry.forecast, list(state)):
        part_weights = weights[:, [column[name] for name in part_ids]].astype(np.float64)
        for name, values in terms.items():
            sums[name] += part_weights @ values.reshape(len(values), -1).astype(np.float64)
    replicas = []
    for row in range(len(weights)):
        score.load_state({name: _as_state(sums[name][row], zero) for name, zero in state.items()})
        replicas.append(_compared(score.compute(), entry.evaluation.source["thresholds"]))
    return {key: np.array([replica[key] for replica in replicas]) for key in replicas[0]}


def compared_score(entry: Entry) -> ScoreGroup:
    """An empty score of everything that is compared."""
    source = entry.evaluation.source
    steps = [threshold - source["offset"] for threshold in source["thresholds"]]
    parts = Scores(source["scale"], steps, source["frames_out"], entry.members).parts
    return ScoreGroup(source["frames_out"], {name: parts[name] for name in PARTS})


def difference(replicas: np.ndarray) -> Difference:
    """The first replica with the percentile interval of the others."""
    value, drawn = float(replicas[0]), replicas[1:]
    defined = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or len(defined) < (1 - MOST_UNDEFINED) * len(drawn):
        return Difference(value, np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value, float(low), float(high))


def rare_key(threshold: float) -> str:
    """Key of the CSI of one threshold."""
    return f"csi_{threshold:g}"


def _compared(scores: dict, thresholds: Sequence[float]) -> dict[str, float]:
    rare = list(zip(thresholds, scores["csi_per_threshold"], strict=True))[-RARE_EVENTS:]
    return {key: scores[key] for key in COMPARED} | {rare_key(threshold): csi for threshold, csi in rare}


def _as_state(values: np.ndarray, zero: torch.Tensor) -> torch.Tensor:
    values = values if zero.is_floating_point() else values.round()
    return torch.from_numpy(values).reshape(zero.shape).to(zero.dtype)
