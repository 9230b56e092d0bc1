"""Order of sequences and random numbers, from the seed alone.

Neither the number of processes nor that of workers changes them.
"""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dataset.sequences import Sequences
from utils.errors import InputError
from utils.processors import processors


def derived_seed(*keys: int) -> int:
    """Derive a 63-bit seed from the seed of the run and its use.

    Different keys give unrelated seeds.
    """
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 1)


def generators(device: torch.device, *keys: np.ndarray | int) -> list[torch.Generator]:
    """Make one generator per entry of the last key, a list."""
    *common, each = keys
    return [torch.Generator(device).manual_seed(derived_seed(*common, int(key))) for key in each]


class TrainingBatches(Sampler[list[int]]):
    """Training batches `start` to `stop` of one process.

    Every epoch has an order of its own, by `Sequences.order`.

    Batch `k` of the processes together holds the sequences `k * batch_size * processes` and following of that order, so
    that two processes see what one with a batch twice as large would. Sequences that do not fill a last common batch
    wait for the next epoch's order.
    """

    def __init__(
        self,
        sequences: Sequences,
        batch_size: int,  # per process
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        processes: int = 1,
    ):
        self.sequences = sequences
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self.rank = rank
        self.processes = processes
        self.per_epoch = len(sequences) // (batch_size * processes)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order = None
        for number in range(self.start, self.stop):
            epoch, position = divmod(number, self.per_epoch)
            if order is None or position == 0:
                order = self.sequences.order(self.seed, epoch)
            first = (position * self.processes + self.rank) * self.batch_size
            yield order[first : first + self.batch_size].tolist()


class EvaluationBatches(Sampler[list[int]]):
    """Batches of given sequences in order, distributed over processes.

    Each sequence occurs once, and batches do not depend on the number of processes.
    """

    def __init__(self, sequences: list[int], batch_size: int, rank: int = 0, processes: int = 1):
        batches = [sequences[first : first + batch_size] for first in range(0, len(sequences), batch_size)]
        self.batches = batches[rank::processes]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class Numbered(Dataset):
    """Data set of indices and stored sequences."""

    def __init__(self, dataset: Sequences):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, self.dataset.stored(index)


def load_batches(
    dataset: Sequences,
    batches: Sampler[list[int]] | list[list[int]],
    workers: int,
    device: torch.device,
    worker_init: Callable[[int], None] | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield indices `(B,)` and frames `(B, T, C, H, W)`.

    Frames are on the device, in [0, 1], and NaN where data are missing.

    Raises `InputError` if the system has no room for the processes that load data.
    """
    loader = DataLoader(
        Numbered(dataset),
        batch_sampler=batches,
        num_workers=min(workers, processors(), len(batches)),
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers and len(batches) else None,
        worker_init_fn=worker_init,
    )
    try:
        loaded = iter(loader)
    except OSError as error:
        raise InputError(
            f"cannot start processes that load data ({error.strerror}); provide more shared memory (/dev/shm), or give "
            "--num_workers 0."
        ) from None
    for indices, stored in loaded:
        yield indices, dataset.decode(stored.to(device, non_blocking=True))


def digest_of_frames(dataset: Sequences, chosen: list[int]) -> str:
    """Return the SHA-256 of three of the chosen sequences.

    It distinguishes data sets whose sequences have the same names.
    """
    digest = hashlib.sha256()
    for index in (chosen[0], chosen[len(chosen) // 2], chosen[-1]):
        digest.update(dataset.stored(index).numpy().tobytes())
    return digest.hexdigest()


def turned(frames: torch.Tensor, draws: list[torch.Generator]) -> torch.Tensor:
    """Flip each sequence of frames `(B, T, C, H, W)` at random.

    Square frames are rotated, too. Each sequence has its own generator.

    Two flips and the transposition are each made or not: together the eight symmetries of the square, alike likely.
    """
    device = frames.device
    coins = torch.stack([torch.randint(2, (3,), generator=one, device=device) for one in draws]).bool()
    first, second, third = coins.T[..., None, None, None, None]
    frames = torch.where(first, frames.flip(-1), frames)
    frames = torch.where(second, frames.flip(-2), frames)
    return torch.where(third, frames.mT, frames) if frames.shape[-1] == frames.shape[-2] else frames


def spread(total: int, wanted: int | None) -> list[int]:
    """Return at most `wanted` indices, evenly spaced in `range(total)`."""
    if wanted is None or wanted >= total:
        return list(range(total))
    return [i * total // wanted for i in range(wanted)]


def spread_at_random(total: int, wanted: int, *keys: int) -> list[int]:
    """Return one random index from each of `wanted` equal stretches of `range(total)`.

    The keys seed it. A fixed step could meet the same part of every event.
    """
    edges = np.arange(wanted + 1) * total // wanted
    return np.random.default_rng(derived_seed(*keys)).integers(edges[:-1], edges[1:]).tolist()
