"""Work on many items on several processes, with a progress bar."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

T, R = TypeVar("T"), TypeVar("R")


class _Results(Dataset):
    def __init__(self, function: Callable[[T], R], items: Sequence[T]):
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> R:
        return self.function(self.items[number])


def parallel_map(
    function: Callable[[T], R], items: Sequence[T], workers: int, description: str, unit: str
) -> Iterator[R]:
    """Yield results in the order of the items."""
    loader = DataLoader(_Results(function, items), batch_size=None, num_workers=workers)
    yield from tqdm(loader, description, len(items), unit=unit, disable=None)
