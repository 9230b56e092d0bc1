"""Parts of an evaluation, each complete on the disk or missing.

A killed evaluation continues with the missing parts, and processes share them in any way.
"""

import hashlib
import json
import logging
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcast.report.evaluation import DAMAGE
from utils.errors import InputError
from utils.files import replacing, writable_folder

LOG = logging.getLogger(__name__)
MOST_PARTS = 64  # where the work allows it, so that several processes share it evenly,
MOST_BATCHES = 16  # and the batches of one part at most, so that little is lost


def split_into_parts(batches: list[list[int]]) -> list[list[list[int]]]:
    """Group consecutive batches to parts.

    The parts depend on the number of batches alone, not on the processes.
    """
    size = max(1, min(MOST_BATCHES, math.ceil(len(batches) / MOST_PARTS)))
    return [batches[first : first + size] for first in range(0, len(batches), size)]


@dataclass
class Part:
    """Scores of some sequences: their sums, and the terms of each sequence.

    Terms are kept for the scores that the bootstrap compares.
    """

    index: list[int]  # of the n sequences in the data set
    ids: list[str]
    events: list[str]  # that they belong to
    states: dict[str, dict[str, Tensor]]  # forecast -> sums by name, as `Score.state`
    terms: dict[str, dict[str, Tensor]]  # forecast -> terms (n, ...) by name, as `Score.update` returns them


class Parts:
    """The parts of one evaluation, as `part-<number>.npz` in a folder.

    A file holds `index`, `id` and `event` (n,), `<forecast>:<name>` (n, ...), terms of each sequence in single
    precision, `sum:<forecast>:<name>`, the exact sums of the part, and `evaluation`, the digest of the evaluation.
    """

    def __init__(self, folder: Path, identity: dict):
        self.folder = folder
        self.digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def prepare(self) -> None:
        """Create the folder, and remove incomplete files of killed processes.

        Raises `InputError` if the folder cannot be written.
        """
        writable_folder(self.folder, "the scores of the sequences")
        for leftover in self.folder.glob(".part-*"):
            leftover.unlink(missing_ok=True)

    def done(self, number: int) -> bool:
        """Whether a part is complete on the disk.

        Raises `InputError` if it belongs to another evaluation.
        """
        path = self._path(number)
        if not path.is_file():
            return False
        try:
            with zipfile.ZipFile(path) as file:
                whole = file.testzip() is None
        except DAMAGE:
            whole = False
        if not whole:
            LOG.warning("%s is damaged; its sequences are scored again", path)
            return False
        self.load(number)
        return True

    def save(self, number: int, part: Part) -> None:
        """Write a part completely or not at all."""
        arrays = {"index": np.asarray(part.index, dtype=np.int64), "id": np.asarray(part.ids, dtype=np.str_)}
        arrays["event"] = np.asarray(part.events, dtype=np.str_)
        arrays["evaluation"] = np.asarray(self.digest)
        for forecast, terms in part.terms.items():
            arrays |= {f"{forecast}:{name}": _compact(values) for name, values in terms.items()}
        for forecast, state in part.states.items():
            arrays |= {f"sum:{forecast}:{name}": values.cpu().numpy() for name, values in state.items()}
        with replacing(self._path(number)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    def load(self, number: int, *wanted: str) -> dict[str, np.ndarray]:
        """Load the arrays of a part that start with `wanted` names.

        Raises `InputError` if it is missing, damaged or of another evaluation.
        """
        path = self._path(number)
        try:
            with np.load(path, allow_pickle=False) as file:
                owner = str(file["evaluation"]) if "evaluation" in file else None
                arrays = {name: file[name] for name in file.files if name.startswith(wanted)}
        except FileNotFoundError:
            raise InputError(
                f"{path} is missing: all processes of an evaluation must see the same {self.folder}."
            ) from None
        except DAMAGE as error:
            raise InputError(f"{path} is damaged ({error}); delete it and evaluate again.") from None
        if owner != self.digest:
            raise InputError(f"{path} belongs to another evaluation; move it away and evaluate again.")
        return arrays

    def total(self, number: int, forecast: str) -> dict[str, Tensor]:
        """Sum the state of the first `number` parts in their order."""
        prefix = f"sum:{forecast}:"
        total: dict[str, Tensor] = {}
        for state in self._each(number, prefix):
            for name, values in state.items():
                name, values = name.removeprefix(prefix), torch.from_numpy(values)
                total[name] = total[name] + values if name in total else values
        return total

    def crps(self, number: int, forecast: str) -> tuple[list[int], np.ndarray]:
        """Return index and CRPS of each sequence of the first `number` parts.

        The CRPS is NaN for a sequence without a valid pixel.
        """
        crps, pixels = f"{forecast}:ensemble/crps", f"{forecast}:ensemble/pixels"
        index, values = [], []
        for arrays in self._each(number, "index", crps, pixels):
            index += arrays["index"].tolist()
            with np.errstate(invalid="ignore"):
                values.append(arrays[crps].sum(axis=1) / arrays[pixels].sum(axis=1))
        return index, np.concatenate(values)

    def _each(self, number: int, *wanted: str) -> Iterator[dict[str, np.ndarray]]:
        return (self.load(part, *wanted) for part in range(number))

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.npz"


def _compact(values: Tensor) -> np.ndarray:
    """Convert to single precision, which is enough for one sequence."""
    return values.to(torch.float32 if values.is_floating_point() else torch.int32).cpu().numpy()
