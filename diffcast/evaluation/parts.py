"""The parts of an evaluation on disk, from which it resumes."""

import hashlib
import json
import logging
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from utils.errors import InputError
from utils.files import replacing, writable_folder

LOG = logging.getLogger(__name__)
MOST_PARTS = 64  # where the work allows it, so that several processes share it evenly,
MOST_BATCHES = 16  # and the batches of one part at most, so that little is lost
RAINY = 0.05  # share of the observed pixels that reach the lowest threshold in a sequence worth drawing
# What reading a damaged .npz raises, depending on the byte: flags of the archive turn into RuntimeError.
DAMAGE = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


class DamagedPartError(InputError):
    """A part that cannot be read."""


def digest_of(identity: dict) -> str:
    """The SHA-256 of an evaluation's identity, which its parts carry."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def split_into_parts(batches: list[list[int]]) -> list[list[list[int]]]:
    """Group consecutive batches, in a way that depends on their number alone."""
    size = max(1, min(MOST_BATCHES, math.ceil(len(batches) / MOST_PARTS)))
    return [batches[first : first + size] for first in range(0, len(batches), size)]


@dataclass
class Part:
    """Scores of n sequences: their sums, and the terms of each."""

    index: list[int]  # of the n sequences in the data set
    ids: list[str]
    events: list[str]  # that they belong to
    states: dict[str, dict[str, Tensor]]  # forecast -> sums by name, as `Score.state`
    terms: dict[str, dict[str, Tensor]]  # forecast -> terms (n, ...) by name, as `Score.update` returns them


class Parts:
    """The parts of one evaluation, as `part-<number>.npz` in a folder.

    A file holds `index`, `id` and `event` (n,), `<forecast>:<name>` (n, ...), terms of each sequence in single
    precision, `sum:<forecast>:<name>`, the exact sums of the part, and `evaluation`, the digest of the evaluation.

    Every method that reads raises `InputError` for a part that is missing, damaged or another evaluation's.
    """

    def __init__(self, folder: Path, digest: str):
        self.folder = folder
        self.digest = digest

    def prepare(self) -> None:
        """Create the folder and remove unfinished files. Raises `InputError` if that fails."""
        writable_folder(self.folder, "the scores of the sequences")
        for leftover in self.folder.glob(".part-*"):
            leftover.unlink(missing_ok=True)

    def done(self, number: int) -> bool:
        """Whether a part is on disk and intact."""
        path = self._path(number)
        if not path.is_file():
            return False
        try:
            with self._open(path) as file:
                for name in file.files:
                    file[name]  # compares the checksum
        except DamagedPartError:
            LOG.warning("%s is damaged; its sequences are scored again", path)
            return False
        return True

    def save(self, number: int, part: Part) -> None:
        """Write a part; an interrupted call leaves no file."""
        arrays = {"index": np.asarray(part.index, dtype=np.int64), "id": np.asarray(part.ids, dtype=np.str_)}
        arrays["event"] = np.asarray(part.events, dtype=np.str_)
        arrays["evaluation"] = np.asarray(self.digest)
        for forecast, terms in part.terms.items():
            arrays |= {f"{forecast}:{name}": _compact(values) for name, values in terms.items()}
        for forecast, state in part.states.items():
            arrays |= {f"sum:{forecast}:{name}": values.cpu().numpy() for name, values in state.items()}
        with replacing(self._path(number)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    def total(self, number: int, forecast: str) -> dict[str, Tensor]:
        """The summed state of the first `number` parts, added in their order."""
        prefix = f"sum:{forecast}:"
        total: dict[str, Tensor] = {}
        for path in map(self._path, range(number)):
            with self._open(path) as file:
                for key in (key for key in file.files if key.startswith(prefix)):
                    name, values = key.removeprefix(prefix), torch.from_numpy(file[key])
                    total[name] = total[name] + values if name in total else values
        return total

    def read(self, number: int | None, *names: str) -> Iterator[list[np.ndarray]]:
        """The named arrays of each part, read one part at a time.

        Reads the first `number` parts, or all on disk if `number` is None. Raises `InputError` if there is no part.
        """
        paths = sorted(self.folder.glob("part-*.npz")) if number is None else [*map(self._path, range(number))]
        if not paths:
            raise InputError(f"{self.folder} has no part-*.npz, which comparisons need; evaluate that run again.")
        for path in paths:
            with self._open(path) as file:
                yield [file[name] for name in names]

    def cases(self, number: int, forecast: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Index, CRPS and share of rain of the sequences of `number` parts.

        The share of rain is the fraction of the observed pixels that reach the lowest threshold. Both are NaN for a
        sequence without a valid pixel.
        """
        names = [f"{forecast}:{name}" for name in ("ensemble/crps", "ensemble/pixels", "categorical/counts")]
        index, crps, rain = [], [], []
        for part, total, pixels, counts in self.read(number, "index", *names):
            lowest = counts[:, :, 0].sum(axis=-1)  # hits, misses, false alarms, correct negatives (n, 4)
            with np.errstate(invalid="ignore"):
                crps.append(total.sum(axis=1) / pixels.sum(axis=1))
                rain.append(lowest[:, :2].sum(axis=1) / lowest.sum(axis=1))
            index.append(part)
        return np.concatenate(index), np.concatenate(crps), np.concatenate(rain)

    def events(self) -> dict[str, str]:
        """Events by the ids of all scored sequences.

        Raises `InputError` if an id occurs twice.
        """
        pairs = [pair for ids, events in self.read(None, "id", "event") for pair in zip(ids, events, strict=True)]
        found = {str(name): str(event) for name, event in pairs}
        if len(found) < len(pairs):
            raise InputError(f"the parts in {self.folder} repeat sequences; delete them and evaluate that run again.")
        return found

    def terms(self, forecast: str, states: Sequence[str]) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
        """Ids (n) and terms `(n, ...)` by name of each part."""
        for ids, *terms in self.read(None, "id", *(f"{forecast}:{state}" for state in states)):
            yield ids.tolist(), dict(zip(states, terms, strict=True))

    @contextmanager
    def _open(self, path: Path) -> Iterator[NpzFile]:
        """Open a part. Raises `InputError`, also while arrays are read."""
        try:
            with path.open("rb") as stream, NpzFile(stream, allow_pickle=False) as file:
                if "evaluation" in file and str(file["evaluation"]) == self.digest:
                    yield file
                    return
        except FileNotFoundError:
            raise InputError(
                f"{path} is missing: all processes of an evaluation must see the same {self.folder}."
            ) from None
        except KeyError as error:
            raise InputError(f"{path} is incomplete ({error.args[0]}); delete it and evaluate again.") from None
        except DAMAGE as error:
            raise DamagedPartError(f"{path} is damaged ({error}); delete it and evaluate again.") from None
        raise InputError(f"{path} belongs to another evaluation; move it away and evaluate again.")

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.npz"


def _compact(values: Tensor) -> np.ndarray:
    """Single precision, which suffices for the terms of one sequence."""
    return values.to(torch.float32 if values.is_floating_point() else torch.int32).cpu().numpy()
