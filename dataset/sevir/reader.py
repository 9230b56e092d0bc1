"""SEVIR's vertically integrated liquid (VIL) from the original HDF5 files.

Veillette et al., "SEVIR: a storm event imagery dataset for deep learning applications in radar and satellite
meteorology", NeurIPS 2020.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dataset.checking import MISSING_FILE
from dataset.hdf5 import (
    READ_ERRORS,
    LayoutError,
    OpenFiles,
    file_size,
    open_hdf5,
    own_dataset,
    patiently,
    reason_of,
    refuse_bombs,
)
from dataset.sequences import EVENT_FRAMES, EventWindows
from dataset.sevir.catalog import (
    EXCLUDED,
    INCOMPLETE,
    REPEATED,
    SCHEMES,
    Event,
    catalog_path,
    files_root,
    is_synthetic,
    read_events,
)
from dataset.source import VIL_10MIN
from utils.errors import InputError

LOG = logging.getLogger(__name__)

WRONG_LAYOUT = "file is not ids and square uint8 frames [N, H, W, frames of an event]"
OUT_OF_RANGE = "file_index is out of range"
OTHER_ID = "id in the file differs from the catalogue's"

MAX_EVENTS = 2**16  # in a file; SEVIR's hold several thousand
MAX_SIDE = 2048  # pixels; SEVIR's frames have 384
MAX_ID = 64  # bytes


class EmptySplitError(InputError):
    """A split without a single usable event."""


class Sevir(EventWindows):
    """SEVIR's VIL from `CATALOG.csv` and the HDF5 files it names.

    File names count from `<data_path>/data`, or from `data_path` if there is no such folder. The constructor checks all
    files, so that a long training does not meet a bad one later. Unusable events are skipped, counted and logged.

    Raises `InputError` for a broken catalogue, an unreadable HDF5 file, a wrong option, or a split without usable
    events (`EmptySplitError`), and later if a file has changed since.
    """

    default_stride: int | None = None  # frames; None: the split scheme's own

    def __init__(
        self,
        data_path: str | Path,
        split: str,  # train, valid or test
        img_size: int = 128,  # pixels; frames of another size are resized
        seq_len: int = 25,  # frames
        stride: int | None = None,  # frames; None: `default_stride`
        split_scheme: str = "official",  # or benchmark
    ):
        check_window(seq_len, stride, img_size, self.event_frames)
        events, skipped = read_events(data_path, split, split_scheme)
        self.events, faults = usable_events(files_root(data_path), events, self.event_frames)
        skipped.update(faults)
        if not self.events:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in skipped.items()) or "no rows"
            raise EmptySplitError(
                f"{catalog_path(data_path)} names no usable event of the {split} split ({reasons}); "
                "download its files or choose another split."
            )
        ids = [event.id for event in self.events]
        stride = stride or self.default_stride or SCHEMES[split_scheme].stride
        super().__init__(ids, skipped, seq_len, stride, is_synthetic(data_path))
        self._files = EventFiles(files_root(data_path), img_size, self.event_frames)
        faulty = set(self.skipped) - {INCOMPLETE, REPEATED, EXCLUDED}
        LOG.log(logging.WARNING if faulty else logging.INFO, "%s split: %s", split, self.describe())

    def read(self, event: int, first: int, stop: int) -> Tensor:
        """Read frames of an event, uint8 `(stop - first, 1, H, W)`."""
        return self._files.read(self.events[event], first, stop)


class EventFiles:
    """HDF5 files with events of `event_frames` frames, resized to `img_size`."""

    def __init__(self, root: Path, img_size: int, event_frames: int):
        self.root, self.img_size = root, img_size
        self._files = OpenFiles(partial(open_frames, event_frames=event_frames))

    def read(self, event: Event, first: int, stop: int) -> Tensor:
        """Read frames of an event, uint8 `(stop - first, 1, H, W)`."""
        path = self.root / event.file
        try:
            frames = self._files.read(path, lambda vil: read_frames(vil, event.index, first, stop))
        except READ_ERRORS as error:
            raise InputError(
                f"Cannot read event {event.id} from {path}, position {event.index}, frames {first} to {stop - 1} "
                f"({reason_of(error, path)}); download the file again."
            ) from error
        return resize_bytes(frames, self.img_size)


class SevirLR(Sevir):
    """SEVIR at low resolution (Gao et al., PreDiff, NeurIPS 2023).

    Events have 25 frames of 128 x 128 pixels, one every 10 minutes.
    The published task forecasts 6 frames from 7: `seq_len` 13.
    """

    source = VIL_10MIN
    event_frames = 25
    default_stride = 6  # frames: an hour, as the benchmark split has it for SEVIR


def resize_bytes(frames: np.ndarray, size: int) -> Tensor:
    """Resize uint8 `(H, W, T)` to uint8 `(T, 1, size, size)`.

    Interpolation is bilinear and antialiased. Rounding makes a resized frame storable in a byte without loss, so a
    cache of frames changes no item.
    """
    frames = torch.from_numpy(np.ascontiguousarray(rearrange(frames, "h w t -> t 1 h w")))
    if frames.shape[-1] == size:
        return frames
    scaled = F.interpolate(frames.float() / 255, size=(size, size), mode="bilinear", antialias=True)
    return (scaled * 255).round().to(torch.uint8)


def check_window(seq_len: int, stride: int | None, img_size: int, event_frames: int = EVENT_FRAMES) -> None:
    """Raise `InputError` unless the options describe windows that fit into an event."""
    if not 1 <= seq_len <= event_frames:
        raise InputError(
            f"seq_len {seq_len} does not fit: an event has {event_frames} frames; use 1 to {event_frames}."
        )
    if stride is not None and stride < 1:
        raise InputError(f"stride {stride} is not possible; use 1 frame or more.")
    if img_size < 1:
        raise InputError(f"img_size {img_size} is not possible; use 1 pixel or more.")


def usable_events(
    root: Path, events: Sequence[Event], event_frames: int = EVENT_FRAMES
) -> tuple[list[Event], Counter[str]]:
    """The events that their files hold, and the others counted by reason."""
    faults = faults_of(root, events, event_frames, _refuse)
    usable = [event for event, fault in zip(events, faults, strict=True) if fault is None]
    return usable, Counter(fault[0] for fault in faults if fault)


def _refuse(path: Path, error: Exception) -> NoReturn:
    raise InputError(f"Cannot read {path} ({reason_of(error, path)}); download the file again.") from error


def faults_of(
    root: Path,
    events: Sequence[Event],
    event_frames: int,
    unreadable: Callable[[Path, Exception], tuple[str, str]],  # kind and detail for a file that cannot be read
) -> list[tuple[str, str] | None]:
    """Kind and detail of each event that its file does not hold."""
    ids: dict[str, list[str]] = {}
    faults: dict[str, tuple[str, str]] = {}
    for file in dict.fromkeys(event.file for event in events):
        path = root / file
        try:
            if file_size(path) is None:
                faults[file] = MISSING_FILE, file
            else:
                ids[file] = stored_ids(path, event_frames)
        except LayoutError as error:
            faults[file] = WRONG_LAYOUT, f"{file}: {error}"
        except READ_ERRORS as error:
            faults[file] = unreadable(path, error)
    return [faults.get(event.file) or _misplaced(event, ids[event.file]) for event in events]


def _misplaced(event: Event, ids: list[str]) -> tuple[str, str] | None:
    if not 0 <= event.index < len(ids):
        return OUT_OF_RANGE, f"{event.index} of {len(ids)}"
    return None if ids[event.index] == event.id else (OTHER_ID, f"{ids[event.index]!r} at {event.index}")


def open_frames(path: Path, event_frames: int) -> h5py.Dataset:
    """Open frames uint8 `[N, H, H, event_frames]`, or raise `LayoutError`."""
    file = open_hdf5(path)
    try:
        vil = own_dataset(file, "vil")
        shape = vil.shape if vil.ndim == 4 else (0, 0, 0, 0)
        sound = shape[0] <= MAX_EVENTS and 0 < shape[1] == shape[2] <= MAX_SIDE and shape[3] == event_frames
        if not sound or vil.dtype != np.uint8:
            raise LayoutError(f"its frames are {vil.dtype} {list(vil.shape)}")
    except READ_ERRORS:
        file.close()
        raise
    return vil


def read_frames(vil: h5py.Dataset, index: int, first: int, stop: int) -> np.ndarray:
    """Read frames `first` to `stop` of an event, uint8 `(H, W, T)`."""
    refuse_bombs(vil, (index, 0, 0, first), (index + 1, *vil.shape[1:3], stop))
    return vil[index, :, :, first:stop]


def stored_ids(path: Path, event_frames: int) -> list[str]:
    """Read the ids of the events, or raise `LayoutError`."""
    vil = patiently(lambda: open_frames(path, event_frames))
    with vil.file as file:
        ids = own_dataset(file, "id")
        text = h5py.check_string_dtype(ids.dtype)
        if text is None or ids.shape != vil.shape[:1] or (text.length or 0) > MAX_ID:
            raise LayoutError(f"its ids are {ids.dtype} {list(ids.shape)}")
        refuse_bombs(ids, (0,), ids.shape)
        # texts of any length one by one, because all of them may be the same huge one
        if text.length is None and any(len(ids[i]) > MAX_ID for i in range(len(ids))):
            raise LayoutError(f"it has an id of more than {MAX_ID} bytes")
        return ids.asstr(errors="replace")[:].tolist()
