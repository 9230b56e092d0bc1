"""The contract of all data sets: sequences, events and splits."""

import re
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from dataset.source import VIL, Source, synthetic
from utils.errors import InputError

SPLITS = ("train", "valid", "test")
EVENT_ID = re.compile(r"\w[\w.+-]{0,63}")  # safe in names of files and in lines of text
EVENT_FRAMES = 49  # of SEVIR: 4 hours, a frame every 5 minutes


class Sequences(Dataset):
    """The sequences of one split.

    An item is a float32 tensor `(seq_len, 1, H, W)` in [0, 1], NaN where radar data is missing or a frame is padded.
    `source` says what values stand for, and `event_ids` names the events that the split consists of. A subclass
    implements `__len__`, `__getitem__` and `sequence_id`. The other methods have defaults.
    """

    source: Source
    event_ids: Sequence[str]

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} does not say how many sequences it has; implement `__len__`.")

    def sequence_id(self, index: int) -> str:
        """Unique name of a sequence, fit for names of files."""
        raise TypeError(f"{type(self).__name__} does not name its sequences; implement `sequence_id`.")

    def event_of(self, index: int) -> str:
        """Name of the event of a sequence, whose sequences resemble each other."""
        return self.sequence_id(index)

    def stored(self, index: int) -> Tensor:
        """An item in a compact form, which passes between processes."""
        return self[index]

    def decode(self, stored: Tensor) -> Tensor:
        """Items, one or a batch, from their stored form."""
        return stored

    def crop(self, frames: Tensor) -> Tensor:
        """Crop frames or forecasts `(..., H, W)` to the unpadded part."""
        return frames

    def part_of(self, index: int) -> tuple[int, tuple[slice, slice]]:
        """Number of the map that an item is a part of, and its rows and columns there."""
        return index, (slice(None), slice(None))

    def map_frames(self, number: int) -> Tensor:
        """The frames `(seq_len, 1, H, W)` of a map, which items may be parts of."""
        return self[number]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of the items that an epoch of training sees, in order, an array or what slices like one."""
        return np.random.default_rng([seed, epoch]).permutation(len(self))

    def checked(self, index: int) -> int:
        """The index itself; raises `IndexError` if there is no such sequence."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return index


class EventWindows(Sequences):
    """Windows of `seq_len` frames, every `stride` frames of an event.

    An item is whole bytes / 255. A subclass says where frames come from by implementing `read`. Items count event by
    event. `skipped` is the number of catalogue rows left out, by reason.
    """

    source = VIL
    event_frames = EVENT_FRAMES

    def __init__(
        self,
        event_ids: Sequence[str],
        skipped: dict[str, int],
        seq_len: int,  # frames
        stride: int,  # frames
        made: bool,  # by `dataset.synthetic.writer`
    ):
        if made:
            self.source = synthetic(self.source)
        self.event_ids = list(event_ids)
        self.skipped = dict(skipped)
        self.seq_len = seq_len
        self.stride = stride
        self.windows_per_event = (self.event_frames - seq_len) // stride + 1

    def read(self, event: int, first: int, stop: int) -> Tensor:
        """Read frames of an event, uint8 `(stop - first, 1, H, W)`."""
        raise TypeError(f"{type(self).__name__} does not say where its frames come from; implement `read`.")

    def __len__(self) -> int:
        return len(self.event_ids) * self.windows_per_event

    def __getitem__(self, index: int) -> Tensor:
        return self.decode(self.stored(index))

    def stored(self, index: int) -> Tensor:
        """The bytes of an item, uint8 `(seq_len, 1, H, W)`."""
        event, first = self._window(index)
        return self.read(event, first, first + self.seq_len)

    def decode(self, stored: Tensor) -> Tensor:
        """Float32 items in [0, 1] from bytes."""
        return stored.float() / 255

    def sequence_id(self, index: int) -> str:
        """Name of a sequence, `<event id>+<first frame>`."""
        event, first = self._window(index)
        return f"{self.event_ids[event]}+{first}"

    def event_of(self, index: int) -> str:
        """Id of the event that a sequence is a window of."""
        return self.event_ids[self._window(index)[0]]

    def describe(self) -> str:
        """Numbers of events, sequences and skipped rows in one line."""
        skipped = "; ".join(f"{count} x {reason}" for reason, count in self.skipped.items())
        number = f"{len(self.event_ids)} events, {len(self)} sequences"
        return f"{self.source.name}, {number}, skipped rows: {skipped or 'none'}"

    def _window(self, index: int) -> tuple[int, int]:
        """Number of an event and the first frame of a window."""
        event, window = divmod(self.checked(index), self.windows_per_event)
        return event, window * self.stride


def check_split(split: str) -> None:
    """Raise `InputError` unless there is a split of this name."""
    if split not in SPLITS:
        raise InputError(f"Unknown split '{split}'; choose one of {', '.join(SPLITS)}.")
