"""Sequences of Shanghai, MeteoNet and CIKM from published HDF5 files.

Yu et al., "DiffCast: a unified framework via residual diffusion for precipitation nowcasting", CVPR 2024.
`python -m dataset prepare` makes the same files from the raw archives.
"""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.exclusions import exclusions_path, read_exclusions
from dataset.hdf5 import (
    READ_ERRORS,
    LayoutError,
    OpenFiles,
    file_size,
    open_hdf5,
    own_dataset,
    reason_of,
    refuse_bombs,
)
from dataset.sequences import Sequences, check_split
from dataset.source import CIKM, METEONET, SHANGHAI, Source
from utils.errors import InputError

LOG = logging.getLogger(__name__)

VALID_SHARE = 10  # a tenth of the training windows, the last in time, where a file has no validation split
MAX_SIDE = 2048  # pixels: a larger frame is a damaged or hostile file


@dataclass(frozen=True)
class Layout:
    """Where a published file keeps its windows and what their bytes mean."""

    source: Source
    frames: int  # in each window
    length: str  # name of a split's number of windows
    window: str  # name of a window, from its split and number
    first: int  # number of the first window
    full: int  # stored value that is 1.0; larger ones are cut off
    missing: int | None = None  # stored value of pixels without data
    padded: int | None = None  # height and width, in pixels, that frames are padded to on all sides
    has_valid: bool = False  # a validation split of its own

    def name_of(self, split: str, number: int) -> str:
        """Name of a stored split's window, the first being number 0."""
        return self.window.format(split=split, number=self.first + number)

    def misfit(self, window: h5py.Dataset) -> str:
        """Difference of a window from the expected type and shape, or nothing."""
        limit, (shape, dtype) = self.padded or MAX_SIDE, (window.shape, window.dtype)
        fits = len(shape) == 3 and shape[0] == self.frames and all(0 < side <= limit for side in shape[1:])
        if fits and dtype == np.uint8:
            return ""
        return f"{dtype} {list(shape)}; expected uint8 [{self.frames}, H, W] of at most {limit} pixels a side"


LAYOUTS = {
    "shanghai": Layout(SHANGHAI, 25, "{split}/all_len", "{split}/{number}", 0, full=255),
    "meteo": Layout(METEONET, 25, "{split}_len", "{split}/{number}", 0, full=90, missing=255),
    "cikm": Layout(CIKM, 15, "{split}_len", "{split}/sample_{number}", 1, full=255, padded=128, has_valid=True),
}


class RadarH5(Sequences):
    """Windows of one split of a published file.

    The value 1 of an item stands for `source.scale` dBZ. `event_ids` are the names of the windows.

    If the file has no validation split, the last tenth of its training windows, which are in order of time, is the
    validation split. Windows overlap, so those between the two splits that could share a frame with both are left out.
    The test split never serves for validation.

    Windows that `<name>.exclusions.txt` next to the file names are left out, and `excluded` is their number.

    Every window's shape is checked here. Raises `InputError` for a file of another layout, a wrong option, or a split
    without windows, and later for a window that cannot be read.
    """

    def __init__(
        self,
        name: str,  # of LAYOUTS
        data_path: str | Path,  # the file, or the folder that holds <name>.h5
        split: str,  # train, valid or test
        img_size: tuple[int, int] = (128, 128),  # height and width in pixels; other frames are resized
        seq_len: int = 25,  # frames; the first ones of each window
        scale: float | None = None,  # dBZ that 1.0 stands for; None: as the authors of DiffCast score
    ):
        self.layout = LAYOUTS[name]
        self.size = img_size
        self.seq_len = seq_len
        _check_options(name, self.layout, split, self.size, seq_len, scale)
        self.source = replace(self.layout.source, scale=float(scale or self.layout.source.scale))
        self.path = file_of(name, data_path)
        self._files = OpenFiles(open_hdf5)
        with open_file(self.path, self.source) as file:
            self._names, self.frame_shape, self.excluded = self._windows(file, split)
        self.event_ids = [window_id(name) for name in self._names]
        LOG.info("%s %s: %s", self.source.name, split, self.describe())

    def __len__(self) -> int:
        return len(self.event_ids)

    def __getitem__(self, index: int) -> Tensor:
        stored = torch.from_numpy(self._read(self._names[self.checked(index)]))[:, None]
        layout = self.layout
        frames = stored.clamp(max=layout.full).float()
        if layout.missing is None and layout.padded is None:
            return (resize(frames, self.size) / layout.full).clamp(0, 1)
        if layout.missing is not None:
            frames[stored == layout.missing] = torch.nan
        if layout.padded:
            frames = pad(frames, layout.padded)
        return (resize_valid(frames, self.size) / layout.full).clamp(0, 1)

    def sequence_id(self, index: int) -> str:
        """Name of a sequence: its split and the window's name."""
        return self.event_ids[self.checked(index)]

    def event_of(self, index: int) -> str:
        """Name of a block of windows, which may overlap their neighbours."""
        return f"block {self.checked(index) // self.layout.frames}"

    def describe(self) -> str:
        """Number, size and scale of the sequences in one line."""
        height, width = self.frame_shape
        left_out = f", {self.excluded} excluded by {exclusions_path(self.path).name}" if self.excluded else ""
        scale = f"1.0 is {self.source.scale:g} {self.source.units}"
        return f"{len(self)} sequences of {height} x {width} pixels{left_out}, {scale}"

    def _windows(self, file: h5py.File, split: str) -> tuple[list[str], tuple[int, int], int]:
        """Names of windows, shape of their frames, and number of exclusions."""
        derived = split != "test" and not self.layout.has_valid
        stored = "train" if derived else split
        excluded = read_exclusions(self.path)
        try:
            count, present = announced(file, self.layout, stored), len(file[stored])
        except (AttributeError, *READ_ERRORS) as error:
            reason = reason_of(error, self.path)
            raise InputError(f"{self.path} is no {self.source.name} file with a {stored} split ({reason}).") from error
        if count > present + len(excluded):
            raise InputError(f"{self.path} announces {count} windows in {stored} and holds {present}; get it again.")
        numbers = range(count)
        if derived:
            numbers = dict(zip(("train", "valid"), divide(count, self.layout.frames), strict=True))[split]
        names = [self.layout.name_of(stored, number) for number in numbers]
        kept = [name for name in names if window_id(name) not in excluded]
        if not kept:
            raise InputError(
                f"{self.path} has no window for the {split} split ({count} in {stored}, {len(names)} of this split "
                "excluded); use a larger file."
            )
        shapes = {self._shape(file, name) for name in kept}
        if len(shapes) > 1:
            raise InputError(
                f"{self.path} mixes frames of {len(shapes)} sizes in {stored}; prepare it from one region."
            )
        return kept, shapes.pop(), len(names) - len(kept)

    def _shape(self, file: h5py.File, name: str) -> tuple[int, int]:
        """Height and width of a window's frames, checked before anything is read."""
        try:
            return find_window(file, name, self.layout).shape[1:]
        except (AttributeError, *READ_ERRORS) as error:
            raise self._unreadable(name, error) from error

    def _read(self, name: str) -> np.ndarray:
        """The first frames of a window, uint8 `(seq_len, H, W)`."""
        try:
            return self._files.read(self.path, partial(self._block, name=name))
        except (AttributeError, *READ_ERRORS) as error:
            raise self._unreadable(name, error) from error

    def _block(self, file: h5py.File, name: str) -> np.ndarray:
        if find_window(file, name, self.layout).shape[1:] != self.frame_shape:
            raise LayoutError("it has changed since it was checked")
        return read_window(file, name, self.layout, self.seq_len)

    def _unreadable(self, name: str, error: Exception) -> InputError:
        reason = reason_of(error, self.path)
        return InputError(f"Cannot read window {name} of {self.path} ({reason}); get the file again.")


def open_file(path: Path, source: Source) -> h5py.File:
    """Open a file; raise `InputError` if it is not HDF5."""
    if file_size(path) is None:
        raise InputError(f"{path} does not exist; pass the {source.name} HDF5 file as --data_path.")
    try:
        return open_hdf5(path)
    except READ_ERRORS as error:
        raise InputError(f"Cannot read {path} as HDF5 ({reason_of(error, path)}); get the file again.") from error


def find_window(file: h5py.File, name: str, layout: Layout) -> h5py.Dataset:
    """Open a window; raise `LayoutError` if its layout is wrong."""
    window = own_dataset(file, name)
    if misfit := layout.misfit(window):
        raise LayoutError(f"it is {misfit}")
    return window


def read_window(file: h5py.File, name: str, layout: Layout, frames: int) -> np.ndarray:
    """The first frames of a window, uint8 `(frames, H, W)`."""
    window = find_window(file, name, layout)
    refuse_bombs(window, (0, 0, 0), (frames, *window.shape[1:]))
    return window[:frames]


def file_of(name: str, data_path: str | Path) -> Path:
    """The file of a source: itself, or `<name>.h5` in a folder."""
    path = Path(data_path)
    return path / f"{name}.h5" if path.is_dir() else path


def window_id(name: str) -> str:
    """A window's name as one that is fit for files."""
    return name.replace("/", "_")


def announced(file: h5py.File, layout: Layout, stored: str) -> int:
    """Number of windows that a file announces for a split."""
    length = file[layout.length.format(split=stored)]
    return int(length[()]) if length.shape == () else 0


def divide(count: int, frames: int) -> tuple[range, range]:
    """Numbers of the training and validation windows, in order of time.

    There are `count` windows of `frames` frames. No two of them start together, so windows `frames` apart have no frame
    in common, however densely they start.
    """
    first_valid = count - count // VALID_SHARE
    return range(first_valid - frames + 1), range(first_valid, count)


def pad(frames: Tensor, size: int) -> Tensor:
    """Pad frames `(T, 1, H, W)` with NaN to centred squares."""
    height, width = frames.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(frames, (left, size - width - left, top, size - height - top), value=torch.nan)


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize float frames `(T, 1, H, W)`, bilinear and antialiased."""
    if frames.shape[-2:] == size:
        return frames
    return F.interpolate(frames, size=size, mode="bilinear", antialias=True)


def resize_valid(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize frames `(T, 1, H, W)` by weighted means of valid pixels.

    A pixel is valid if more than half of its weight was.
    """
    weight = resize((~frames.isnan()).float(), size)
    return torch.where(weight > 0.5, resize(frames.nan_to_num(nan=0.0), size) / weight, torch.nan)


def _check_options(
    name: str, layout: Layout, split: str, size: tuple[int, int], seq_len: int, scale: float | None
) -> None:
    check_split(split)
    if not 1 <= seq_len <= layout.frames:
        raise InputError(
            f"seq_len {seq_len} does not fit: the windows of {name} have {layout.frames} frames; "
            f"use 1 to {layout.frames}."
        )
    if min(size) < 1:
        raise InputError(f"img_size {size[0]} x {size[1]} is not possible; use 1 pixel or more.")
    if scale is not None and layout.full != 255:
        raise InputError(f"The file of {name} holds dBZ, not bytes of any scale; leave the scale out.")
    highest = max(layout.source.thresholds)
    if scale is not None and not highest < scale < float("inf"):
        raise InputError(
            f"scale {scale:g} does not fit: it is the dBZ that the largest value stands for, and {name} is scored up "
            f"to {highest} dBZ; give more."
        )
