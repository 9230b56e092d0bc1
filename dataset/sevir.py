"""SEVIR's vertically integrated liquid (VIL), read window by window from the original HDF5 files.

Veillette et al., "SEVIR: a storm event imagery dataset for deep learning applications in radar and satellite
meteorology", NeurIPS 2020.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from dataset.catalog import INCOMPLETE, REPEATED, SCHEMES, Event, catalog_path, read_events
from dataset.source import VIL
from utils.errors import InputError

logger = logging.getLogger(__name__)

EVENT_FRAMES = 49  # 4 hours, a frame every 5 minutes

MISSING_FILE = "file is missing"
WRONG_LAYOUT = f"file is not ids and square uint8 frames [N, H, W, {EVENT_FRAMES}]"
OUT_OF_RANGE = "file_index is out of range"
OTHER_ID = "id in the file differs from the catalogue's"

# what h5py raises for files that are truncated, damaged or not what they were when checked
READ_ERRORS = (OSError, KeyError, IndexError, RuntimeError, TypeError, ValueError)


class EmptySplitError(InputError):
    """A split without a single usable event."""


class EventWindows(Dataset):
    """Windows of `seq_len` frames, one every `stride` frames, over events of `EVENT_FRAMES` frames.

    An item is a float32 tensor `(seq_len, 1, H, W)` in [0, 1], whole bytes / 255. A subclass says where
    frames come from by implementing `read`. Items count event by event.

    Attributes: `source` (units, thresholds, colours), `event_ids`, and `skipped`, the number of catalogue
    rows left out by reason.
    """

    source = VIL

    def __init__(
        self,
        event_ids: Sequence[str],
        skipped: dict[str, int],
        seq_len: int,  # frames
        stride: int,  # frames
    ):
        self.event_ids = list(event_ids)
        self.skipped = dict(skipped)
        self.seq_len = seq_len
        self.stride = stride
        self.windows_per_event = (EVENT_FRAMES - seq_len) // stride + 1

    def read(self, event: int, first: int, stop: int) -> Tensor:
        """Frames `first` to `stop` (exclusive) of an event as uint8 `(stop - first, 1, H, W)`."""
        raise TypeError(f"{type(self).__name__} does not say where its frames come from; implement `read`.")

    def __len__(self) -> int:
        return len(self.event_ids) * self.windows_per_event

    def __getitem__(self, index: int) -> Tensor:
        event, first = self._window(index)
        return self.read(event, first, first + self.seq_len).float() / 255

    def sequence_id(self, index: int) -> str:
        """Name of a sequence, `<event id>+<first frame>`."""
        event, first = self._window(index)
        return f"{self.event_ids[event]}+{first}"

    def describe(self) -> str:
        """Numbers of events, sequences and skipped rows, in one line."""
        skipped = "; ".join(f"{count} x {reason}" for reason, count in self.skipped.items())
        return f"{len(self.event_ids)} events, {len(self)} sequences, skipped rows: {skipped or 'none'}"

    def _window(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        event, window = divmod(index, self.windows_per_event)
        return event, window * self.stride


class Sevir(EventWindows):
    """SEVIR VIL read from `CATALOG.csv` and the HDF5 files it names (see `EventWindows` for the items).

    File names count from `<data_path>/data`, or from `data_path` if there is no such folder. All files are
    checked here, so that a long training does not meet a bad one later; what cannot be used is skipped,
    counted and logged. `file_bytes` maps each file the catalogue names to its size (None: missing).

    Raises `InputError` for a broken catalogue, an unreadable HDF5 file, a wrong option, or a split without
    usable events (`EmptySplitError`), and later if a file has changed since.
    """

    def __init__(
        self,
        data_path: str | Path,
        split: str,  # train, valid or test
        img_size: int = 128,  # pixels; frames of another size are resized
        seq_len: int = 25,  # frames
        stride: int | None = None,  # frames; None: the split scheme's own
        split_scheme: str = "official",  # or benchmark
    ):
        check_window(seq_len, stride, img_size)
        events, skipped = read_events(data_path, split, split_scheme)
        self.img_size = img_size
        self.root = files_root(data_path)
        self.events, self.file_bytes, faults = _check_files(self.root, events)
        skipped.update(faults)
        if not self.events:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in skipped.items()) or "no rows"
            raise EmptySplitError(
                f"{catalog_path(data_path)} names no usable event of the {split} split ({reasons}); "
                "download its files or choose another split."
            )
        ids = [event.id for event in self.events]
        super().__init__(ids, skipped, seq_len, stride or SCHEMES[split_scheme].stride)
        self._handles: dict[str, h5py.File] = {}
        self._pid = os.getpid()
        faulty = set(self.skipped) - {INCOMPLETE, REPEATED}
        logger.log(logging.WARNING if faulty else logging.INFO, "SEVIR %s: %s", split, self.describe())

    def read(self, event: int, first: int, stop: int) -> Tensor:
        """Frames `first` to `stop` of an event, resized to whole bytes, as uint8 `(T, 1, H, W)`."""
        event_id, file, index, _ = self.events[event]
        try:
            frames = self._open(file)["vil"][index, :, :, first:stop]
        except READ_ERRORS as error:
            raise InputError(
                f"Cannot read event {event_id} from {self.root / file} ({error}); download the file again."
            ) from error
        return resize_bytes(frames, self.img_size)

    def _open(self, file: str) -> h5py.File:
        if self._pid != os.getpid():
            # after a fork the parent's handles share its file positions: close our copies before opening anew
            for handle in self._handles.values():
                handle.close()
            self._handles, self._pid = {}, os.getpid()
        if file not in self._handles:
            self._handles[file] = h5py.File(self.root / file, "r")
        return self._handles[file]

    def __getstate__(self):
        return {**self.__dict__, "_handles": {}}


def resize_bytes(frames: np.ndarray, size: int) -> Tensor:
    """Resize uint8 `(H, W, T)` to `(T, 1, size, size)`: bilinear, antialiased, rounded to whole bytes.

    Rounding makes a resized frame storable in a byte without loss, so a cache of frames changes no item.
    """
    frames = torch.from_numpy(np.ascontiguousarray(rearrange(frames, "h w t -> t 1 h w")))
    if frames.shape[-1] == size:
        return frames
    scaled = F.interpolate(frames.float() / 255, size=(size, size), mode="bilinear", antialias=True)
    return (scaled * 255).round().to(torch.uint8)


def check_window(seq_len: int, stride: int | None, img_size: int) -> None:
    """Raise `InputError` unless the options describe windows that fit into an event."""
    if not 1 <= seq_len <= EVENT_FRAMES:
        raise InputError(f"seq_len {seq_len} does not fit: a SEVIR event has {EVENT_FRAMES} frames; use 1 to 49.")
    if stride is not None and stride < 1:
        raise InputError(f"stride {stride} is not possible; use 1 frame or more.")
    if img_size < 1:
        raise InputError(f"img_size {img_size} is not possible; use 1 pixel or more.")


def files_root(data_path: str | Path) -> Path:
    """Folder from which the catalogue's file names count."""
    data = Path(data_path, "data")
    return data if data.is_dir() else data.parent


def _check_files(root: Path, events: Sequence[Event]) -> tuple[list[Event], dict[str, int | None], Counter[str]]:
    """Usable events, the size of every file in bytes (None: missing), and the others counted by reason."""
    names = dict.fromkeys(event.file for event in events)
    sizes = {name: file_size(root / name) for name in names}
    ids = {name: _stored_ids(root / name) for name in names if sizes[name] is not None}

    def fault(event: Event) -> str | None:
        if event.file not in ids:
            return MISSING_FILE
        stored = ids[event.file]
        if stored is None:
            return WRONG_LAYOUT
        if not 0 <= event.index < len(stored):
            return OUT_OF_RANGE
        return OTHER_ID if stored[event.index] != event.id else None

    faults = [fault(event) for event in events]
    usable = [event for event, reason in zip(events, faults, strict=True) if reason is None]
    return usable, sizes, Counter(reason for reason in faults if reason)


def file_size(path: Path) -> int | None:
    """Size of a file in bytes, None if there is none."""
    return path.stat().st_size if path.is_file() else None


def _stored_ids(path: Path) -> list[str] | None:
    """Ids of the events in a file, or None if its arrays do not have SEVIR's layout."""
    try:
        with h5py.File(path, "r") as file:
            ids, vil = file.get("id"), file.get("vil")
            if not isinstance(ids, h5py.Dataset) or not isinstance(vil, h5py.Dataset):
                return None
            if h5py.check_string_dtype(ids.dtype) is None or vil.dtype != np.uint8 or vil.ndim != 4:
                return None
            events, height, width, frames = vil.shape
            if ids.shape != (events,) or height != width or frames != EVENT_FRAMES:
                return None
            return ids.asstr(errors="replace")[:].tolist()
    except READ_ERRORS as error:
        raise InputError(f"Cannot read {path} ({error}); download the file again.") from error
