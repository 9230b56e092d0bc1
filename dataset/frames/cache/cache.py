"""The cache of decoded frames, which training reads in place of files.

It is a folder with a file per day, see `dataset.frames.cache.days`. There are no locks. A day's file says what it was
made from, appears complete, and is made anew if its frames or the settings have changed. Several processes and machines
share the work: each makes the days in an order of its own and leaves out those that others have made meanwhile.
"""

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset.exclusions import exclusions_path, read_exclusions
from dataset.frames.archive.archive import archive_of
from dataset.frames.archive.names import moment, on_marks, times_of
from dataset.frames.cache.days import (
    BLOCK,
    DEPTH,
    RECORD,
    Contents,
    Slab,
    compress,
    read_contents,
    read_counts,
    read_day,
    write_day,
)
from dataset.frames.cache.encoding import MISSING, Encoder, Grid, fine_levels
from dataset.frames.config import FramesConfig
from dataset.frames.splits import DAY
from dataset.hdf5 import AccessError
from dataset.parallel import parallel_map
from utils.errors import InputError

LOG = logging.getLogger(__name__)

FORMAT = 5  # raise it when a change of code changes the cached levels


@dataclass(frozen=True)
class Days:
    """The files of a cache, whose levels an encoder makes."""

    folder: Path
    encoder: Encoder

    @cached_property
    def settings(self) -> str:
        """What the levels depend on besides the frames, as JSON."""
        return json.dumps(_settings(self.encoder))

    def path(self, day: int) -> Path:
        """File of a day, counted from 1970."""
        return _path(self.folder, day)

    def contents(self, found: np.ndarray) -> Contents | None:
        """Contents of the file of a day's frames, None if it is absent, damaged or outdated."""
        contents = read_contents(self.path(_day_of(found)))
        if contents is None or contents.settings != self.settings:
            return None
        rows = np.flatnonzero(np.isin(contents.records["time"], found["time"]))
        same = len(rows) == len(found) and all(
            (contents.records[field][rows] == found[field]).all() for field in ("size", "mtime")
        )
        return contents if same else None

    def make(self, found: np.ndarray, encoded: Callable[[np.ndarray], list[np.ndarray | None]]) -> None:
        """Make the file of a day from the levels of its frames, None where one is unusable."""
        records = np.zeros(len(found), RECORD)
        for field in ("time", "size", "mtime"):
            records[field] = found[field]
        write_day(self.path(_day_of(found)), self.settings, records, self._slabs(records, encoded))

    def _slabs(self, records: np.ndarray, encoded: Callable[[np.ndarray], list[np.ndarray | None]]) -> Iterator[Slab]:
        nothing = np.full(self.encoder.grid.fitted, MISSING, "<u2")
        for start in range(0, len(records), DEPTH):
            part = records[start : start + DEPTH]
            frames = encoded(part["time"])
            part["usable"] = [levels is not None for levels in frames]
            yield compress(np.stack([nothing if levels is None else levels for levels in frames]), self._is_wet)

    def _is_wet(self, levels: np.ndarray) -> np.ndarray:
        """Whether levels reach the lowest threshold."""
        source = self.encoder.source
        return source.scale * self.encoder.values(levels) >= source.steps[0]


class Cache:
    """The frames of a folder, in order of time, made by `open_cache`.

    Attributes: nominal `times` (int64 seconds since 1970, UTC) of the usable frames, `unusable` and `excluded` (numbers
    of files left out), `encoder`, and `seen`, a bool array `(rows, columns)` of the blocks of pixels with valid data in
    any frame.
    """

    def __init__(self, days: Days, found: np.ndarray, excluded: int, contents: list[Contents]):
        self.days, self.encoder, self.excluded = days, days.encoder, excluded
        records = np.concatenate([one.records for one in contents])
        usable = np.isin(found["time"], records["time"][records["usable"] > 0])
        self.times, self._stored = found["mark"][usable], found["time"][usable]
        self.unusable = int(np.count_nonzero(~usable))
        self.seen = np.any([one.seen for one in contents], axis=0)

    def read(self, frames: np.ndarray) -> Tensor:
        """Read frames by their rising numbers in `times`.

        They are float32 `(T, 1, H, W)` in [0, 1], NaN where no data is valid.
        """
        height, width = self.encoder.grid.fitted
        return self.encoder.grid.pad(self.read_blocks(frames, *map(range, self.seen.shape))[..., :height, :width])

    def read_blocks(self, frames: np.ndarray, rows: range, columns: range) -> Tensor:
        """Read blocks of frames, `(T, 1, len(rows) * BLOCK, len(columns) * BLOCK)`.

        Blocks at the lower and the right edge may reach beyond the frames, where values are NaN.
        """
        out = np.empty((len(frames), BLOCK * len(rows), BLOCK * len(columns)), np.float32)
        first = 0
        for day, times in self._by_day(frames):
            part = out[first : first + len(times)]
            read_day(self.days.path(day), self.days.settings, times, rows, columns, self.encoder.values, part)
            first += len(times)
        return torch.from_numpy(out)[:, None]

    def counts(self, frames: np.ndarray) -> np.ndarray:
        """Numbers of valid and wet pixels of the blocks of frames, uint16 `(T, 2, rows, columns)`."""
        settings = self.days.settings
        return np.concatenate(
            [read_counts(self.days.path(day), settings, times) for day, times in self._by_day(frames)]
        )

    def _by_day(self, frames: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Days and the times of their frames."""
        times = self._stored[frames]
        days = times // DAY
        for day in np.unique(days).tolist():
            yield day, times[days == day]


def open_cache(
    config: FramesConfig,
    img_size: tuple[int, int] | None,  # height and width in pixels; None: as stored
    packed_path: str | Path | None = None,  # folder for the cache; None: <folder>/packed
    workers: int = 0,  # processes that make days; 0: this one, with threads
) -> Cache:
    """Open the cache of a folder and decode new or changed frames.

    Raises `InputError` if there is no frame, the first frame cannot be used, or the cache cannot be written.
    """
    found, excluded = listed_frames(config)
    caches = Path(packed_path) if packed_path else config.folder / "packed"
    size = "{}x{}".format(*img_size) if img_size else "full"
    folder = caches / f"frames_{config.folder.resolve().name}_{size}"
    by_day = np.split(found, np.flatnonzero(np.diff(found["time"] // DAY)) + 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        encoder = _stored_encoder(folder, config, img_size, by_day)
        cache = encoder and _packed(Days(folder, encoder), by_day, len(excluded), workers)
        if cache is None or not len(cache.times):  # the frame that the cache began with may be gone or excluded by now
            encoder = Encoder.of(config, moment(found["time"][0]), img_size)
            cache = _packed(Days(folder, encoder), by_day, len(excluded), workers)
    except OSError as error:
        raise InputError(
            f"Cannot use the cache {folder} ({error.strerror or error}); choose a place with --packed_path."
        ) from None
    if not len(cache.times):
        raise InputError(f"None of the {len(found)} frames in {config.folder} can be used.")
    return cache


def listed_frames(config: FramesConfig) -> tuple[np.ndarray, np.ndarray]:
    """List the frames of a folder that count, and the excluded ones.

    Exclusions are next to the YAML file, as in `frames.exclusions.txt`. Raises `InputError` if nothing is left.
    """
    archive = archive_of(config)
    found = archive.find()
    excluded = np.isin(found["time"], times_of(read_exclusions(config.file)))
    if excluded.all():
        raise InputError(f"{exclusions_path(config.file)} excludes all {len(found)} frames in {config.folder}.")
    found["mark"], counts = on_marks(found["time"], excluded, round(60 * config.interval), config.tolerance)
    off, marks = found[~(counts | excluded)], f"{config.tolerance:g} s of a multiple of {config.interval:g} minutes"
    if not counts.any():
        raise InputError(f"{config.folder} has no frame within {marks}; correct interval or tolerance.")
    if len(off):
        LOG.warning(
            "%d frames in %s are left out, such as %s: they are not within %s, or another one is nearer to it",
            *(len(off), config.folder, archive.name_of(moment(off["time"][0])).name, marks),
        )
    return found[counts], found[excluded]


def _packed(days: Days, by_day: list[np.ndarray], excluded: int, workers: int) -> Cache:
    """The cache with the days that it lacked."""
    contents = [days.contents(found) for found in by_day]
    lacking = [number for number, one in enumerate(contents) if one is None]
    if lacking:
        _make(days, [by_day[number] for number in np.random.default_rng().permutation(lacking)], workers)
    for number in lacking:
        contents[number] = days.contents(by_day[number])
    gone = [number for number in lacking if contents[number] is None]
    if gone:
        raise InputError(
            f"The cache {days.path(_day_of(by_day[gone[0]]))} was made with other settings meanwhile; start again."
        )
    return Cache(days, np.concatenate(by_day), excluded, contents)


def _make(days: Days, lacking: list[np.ndarray], workers: int) -> None:
    """Make the files of days and warn of frames that cannot be used."""
    if workers:
        results = parallel_map(partial(_make_day, days), lacking, workers, "packing", "day")
        faults = [fault for of_day in results for fault in of_day]
    else:
        with tqdm(total=sum(map(len, lacking)), desc="packing", unit="frame", disable=None) as bar:
            faults = [fault for found in lacking for fault in _make_day(days, found, bar.update)]
    if faults:
        LOG.warning("%d frames cannot be used and count as gaps, for example: %s", len(faults), faults[0])


def _make_day(days: Days, found: np.ndarray, progress: Callable[[int], object] = int) -> list[str]:
    """Make the file of a day, unless another process has meanwhile; return the faults of its frames."""
    if days.contents(found) is not None:
        progress(len(found))
        return []
    faults: list[str] = []

    def encode(time: int) -> np.ndarray | None:
        try:
            return days.encoder.encode(moment(time))
        except AccessError:
            raise  # a record would say for good that the frame is at fault
        except InputError as error:
            faults.append(str(error))
            return None

    with ThreadPoolExecutor() as pool:

        def encoded(times: np.ndarray) -> list[np.ndarray | None]:
            levels = list(pool.map(encode, times))
            progress(len(times))
            return levels

        days.make(found, encoded)
    return faults


def _day_of(found: np.ndarray) -> int:
    return int(found["time"][0] // DAY)


def _path(folder: Path, day: int) -> Path:
    return folder / f"{moment(day * DAY):%Y%m%d}.safetensors"


def _settings(encoder: Encoder) -> dict:
    """What the levels depend on, besides the files."""
    config, transform = encoder.config, encoder.source.transform
    return {
        "format": FORMAT,
        "pattern": config.pattern.text if config.pattern else config.store,
        "timezone": str(config.timezone),
        "format_of_files": config.format,
        "variable": config.variable,
        "scale": config.scale,
        "offset": config.offset,
        "missing": list(config.missing),
        "units": config.units,  # which the files may contradict
        "range": list(config.range),
        "lowest_threshold": config.thresholds[0],  # of wet pixels
        "stored": list(encoder.grid.stored),
        "stored_type": encoder.stored_type,
        "levels": encoder.levels,
        "size": list(encoder.grid.size),
        **({"transform": asdict(transform)} if transform else {}),
    }


def _stored_encoder(
    folder: Path, config: FramesConfig, img_size: tuple[int, int] | None, by_day: list[np.ndarray]
) -> Encoder | None:
    """The encoder of the first day in a cache, None if the cache has other settings."""
    stored = (read_contents(_path(folder, _day_of(found))) for found in by_day)
    first = next(filter(None, stored), None)
    if first is None:
        return None
    try:
        settings = json.loads(first.settings)
        grid = Grid.fitting(tuple(settings["stored"]), img_size)
        encoder = Encoder(config, grid, settings["stored_type"], settings["levels"])
    except (KeyError, TypeError, ValueError):
        return None
    fitting = encoder.levels in (255, fine_levels(config))
    return encoder if fitting and _settings(encoder) == settings else None
