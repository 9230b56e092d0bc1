"""The settings in `frames.yaml`; `resources/frames_example.yaml` shows all its keys."""

import itertools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timezone, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import yaml

from dataset.frames.archive.names import NamePattern, seconds
from dataset.frames.splits import DAY, ByDays, ByTimes, Split
from dataset.hdf5 import reason_of
from dataset.source import VIL, Source
from dataset.transform import NUMBERS, TRANSFORMS, Transform
from utils.errors import InputError

CONFIG, UTC = "frames.yaml", timezone.utc
REQUIRED = ("interval", "range", "thresholds")


@dataclass(frozen=True)
class FramesConfig:
    """Names, values and splits of the frames of a folder.

    A stored value `v` is `v * scale + offset` in `units`, and `range` in those units becomes [0, 1]. Values
    beyond it are clipped. `read_config` makes and checks it.
    """

    file: Path  # the YAML file itself
    folder: Path  # that the pattern's names, or the store's, count from
    interval: float  # minutes between the frames of a sequence, a multiple of a second
    range: tuple[float, float]
    thresholds: tuple[float, ...]
    pattern: NamePattern | None = None  # of the names of files
    store: str | None = None  # a Zarr store in place of files
    units: str | None = None  # None, and of the width too: what the first file says, which `complete_config` puts here
    extent_km: float | None = None  # width of a stored frame
    timezone: tzinfo = UTC  # of the times in names; all other times are UTC
    tolerance: float = 0  # seconds that a name may be off its multiple of the interval; 0: names are exact
    name: str = "radar"
    scale: float | None = None  # None: the file's, or 1
    offset: float | None = None  # None: the file's, or 0
    missing: tuple[float, ...] = ()  # stored values, besides those that the file names
    format: str | None = None  # of the files; None: whatever each file is
    transform: tuple | None = None  # a key of TRANSFORMS, and its numbers if they are given; None: linear
    variable: str | None = None  # name of the data set in HDF5 and NetCDF-4 files; None: the only one, or the first
    bounds: tuple[float, ...] | None = None
    colors: tuple[str, ...] | None = None
    split: Split | None = None
    stride: int = 5  # frames between sequences
    about: tuple[tuple[str, str], ...] = ()  # attributes of forecast files by names of ACDD

    def source(self, widening: float) -> Source:
        """The source of frames that padding has made `widening` times as wide.

        Raises `InputError` if the units do not fit the transform.
        """
        low, high = self.range
        bounds, colors = self.bounds, self.colors
        transform = self._transform()
        if bounds is None:
            bounds, colors = (low, *_legend(self.thresholds[0], high, len(VIL.colors), transform)), VIL.colors
        return Source(
            name=self.name,
            scale=high - low,
            units=self.units,
            thresholds=self.thresholds,
            bounds=bounds,
            colors=colors,
            interval=self.interval,
            extent=self.extent_km * widening,
            offset=low,
            transform=transform,
        )

    def _transform(self) -> Transform | None:
        if self.transform is None:
            return None
        name, *numbers = self.transform
        try:
            return TRANSFORMS[name](self.units, self.interval, *numbers)
        except InputError as error:
            raise InputError(f"{self.file}: {error}.") from None


def _legend(first: float, last: float, number: int, transform: Transform | None) -> list[float]:
    """Equal steps between two values, rounded to two digits.

    With a transform they are equal on its scale. More digits are kept where two would be the same.
    """
    if transform is None:
        step = (last - first) / (number - 1)
        digits = 1 - math.floor(math.log10(step))
        return [first, *(round(first + step * i, digits) for i in range(1, number - 1)), last]
    values = transform.values(np.linspace(*transform.levels(np.array([first, last])), number))[1:-1].tolist()
    rounded = ([first, *(float(f"{value:.{digits}g}") for value in values), last] for digits in itertools.count(2))
    return next(bounds for bounds in rounded if all(low < high for low, high in pairwise(bounds)))


def read_config(path: str | Path) -> FramesConfig:
    """Read a YAML file, or `frames.yaml` in a folder.

    Raises `InputError` that names the wrong key.
    """
    path = Path(path)
    file = path / CONFIG if os.path.isdir(path) else path
    content = _load(file)
    unknown = [str(key) for key in content if key not in _CHECKS]
    if unknown:
        raise InputError(f"{file}: unknown key {unknown[0]}; the keys are {', '.join(_CHECKS)}.")
    lacking = [key for key in REQUIRED if key not in content]
    lacking += ["pattern"] * (not {"pattern", "store"} & content.keys())
    if lacking:
        raise InputError(f"{file} lacks the key {lacking[0]}, which says {meaning_of(lacking[0])}.")
    values = {key: _checked(file, key, value) for key, value in content.items()}
    config = FramesConfig(**values | {"file": file, "folder": file.parent / values.get("folder", "")})
    fault = _contradiction(config)
    if fault:
        raise InputError(f"{file}: {fault}.")
    return config


def meaning_of(key: str) -> str:
    """What the value of a key says."""
    return _CHECKS[key][1]


def _load(file: Path) -> dict:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; write it after resources/frames_example.yaml.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{file} cannot be read as YAML ({reason_of(error, file)}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold `key: value` lines, as resources/frames_example.yaml does.")
    return content


def _checked(file: Path, key: str, value: Any) -> Any:
    check, meaning = _CHECKS[key]
    try:
        return check(value)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (TypeError, ValueError, OverflowError, KeyError):
        raise InputError(f"{file}: {key} must be {meaning}, not {value!r}.") from None


def _contradiction(config: FramesConfig) -> str | None:
    """What does not go together, if anything."""
    low, high = config.range
    if low >= high:
        return f"range must rise, not go from {low:g} to {high:g}"
    if not low < config.thresholds[0] or not config.thresholds[-1] < high:
        return f"all thresholds must lie inside the range {low:g} to {high:g}"
    if config.transform and low < 0:
        return f"range must begin at 0 or above for the logarithm of transform, not at {low:g}"
    if config.tolerance >= 30 * config.interval:
        return f"tolerance must be less than half of the interval, {30 * config.interval:g} s, not {config.tolerance:g}"
    if (config.bounds is None) != (config.colors is None):
        return "bounds and colors must be given together"
    if config.bounds and len(config.bounds) != len(config.colors) + 1:
        return f"{len(config.bounds)} bounds need {len(config.bounds) - 1} colors, not {len(config.colors)}"
    if config.store and (config.pattern or config.timezone is not UTC or config.format not in (None, "zarr")):
        return "store has its own times and format; leave out pattern, timezone and format"
    if config.pattern and not config.pattern.tells_apart(config.interval):
        return (
            f"pattern {config.pattern.text} does not tell frames {config.interval:g} minutes apart; give %Y %m %d %H %M"
        )
    return None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError
    return value


def _zone(value: Any) -> ZoneInfo:
    try:
        return ZoneInfo(_text(value))
    except (KeyError, OSError):  # of an unknown zone, and of a folder of zones
        raise ValueError from None


def _number(value: Any) -> float:
    # a string too, because YAML takes 1e-3 for one
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _number_that(fits: Callable[[float], bool]) -> Callable[[Any], float]:
    """A check for numbers that fulfil a condition."""

    def check(value: Any) -> float:
        if not fits(_number(value)):
            raise ValueError
        return _number(value)

    return check


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _pair(value: Any) -> tuple[float, float]:
    low, high = map(_number, _list(value))
    return low, high


def _rising(value: Any) -> tuple[float, ...]:
    numbers = tuple(map(_number, _list(value)))
    if not numbers or any(a >= b for a, b in pairwise(numbers)):
        raise ValueError
    return numbers


def _missing(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_number(v) for v in values if not (isinstance(v, float) and math.isnan(v)))


def _colors(value: Any) -> tuple[str, ...]:
    if not all(re.fullmatch("#[0-9a-fA-F]{6}", color) for color in _list(value)):
        raise ValueError
    return tuple(value)


def _transform(value: Any) -> tuple:
    """Name and numbers of a transform, from `dbz` or `dbz: [200, 1.6]`."""
    ((name, given),) = value.items() if isinstance(value, dict) else ((value, []),)
    numbers = tuple(map(_number, given if isinstance(given, list) else [given]))
    if len(numbers) not in (0, NUMBERS[name]) or not all(number > 0 for number in numbers):
        raise ValueError
    return name, *numbers


def _split(value: Any) -> Split:
    if not isinstance(value, dict):
        raise TypeError
    if set(value) == {"valid_from", "test_from"}:
        split = ByTimes(*(seconds(_time(value[key])) for key in ("valid_from", "test_from")))
        fits = split.valid_from < split.test_from
    elif set(value) == {"valid", "test"}:
        split = ByDays(*(tuple(map(_day, _list(value[key]))) for key in ("valid", "test")))
        fits = split.fits()
    elif set(value) == {"valid", "test", "period"}:
        numbers = (tuple(map(_count, _list(value[key]))) for key in ("valid", "test"))
        split = ByDays(*numbers, _count(value["period"]))
        fits = split.fits()
    else:
        fits = False
    if not fits:
        raise ValueError
    return split


def _day(value: Any) -> int:
    """Convert a date to a number of days since 1970."""
    day, rest = divmod(seconds(_time(value)), DAY)
    if rest:
        raise ValueError
    return day


def _time(value: Any) -> datetime:
    """Convert a date or time to a naive time in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        if not isinstance(value, date):
            raise TypeError
        value = datetime(value.year, value.month, value.day)
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def _about(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(re.fullmatch(r"[A-Za-z]\w*", _text(key)) for key in value):
        raise TypeError
    return tuple((key, _text(text)) for key, text in value.items())


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise TypeError
    return value


_positive = _number_that(lambda number: number > 0)
_interval = _number_that(lambda minutes: minutes > 0 and (60 * minutes).is_integer())

_CHECKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "name": (_text, "what is measured, as pictures call it"),
    "folder": (_text, "the folder that the pattern counts from"),
    "pattern": (lambda value: NamePattern(_text(value)), "how the time stands in a frame's name"),
    "store": (_text, "the folder of a Zarr store"),
    "interval": (
        _interval,
        "the minutes between frames, a multiple of a second above 0",
    ),
    "timezone": (_zone, "the time zone of the times in names, such as Europe/Helsinki"),
    "tolerance": (_positive, "the seconds above 0 that names may be off the full interval"),
    "format": (_text, "the format of the files"),
    "variable": (_text, "the name of the data set in HDF5 or NetCDF-4 files"),
    "scale": (_number_that(bool), "the factor from stored to physical values, not 0"),
    "offset": (_number, "what is added to get physical values"),
    "missing": (_missing, "one stored value or a list of them"),
    "units": (_text, "the units of physical values"),
    "transform": (_transform, "dbz, log, {dbz: [a, b]} or {log: unit}, with numbers above 0"),
    "range": (_pair, "two physical values [low, high]"),
    "thresholds": (_rising, "a rising list of physical values"),
    "bounds": (_rising, "a rising list of physical values, one more than colors"),
    "colors": (_colors, 'a list of colours like "#1f8a44"'),
    "extent_km": (_positive, "the width of a frame in km"),
    "split": (
        _split,
        "{valid_from: DATE, test_from: DATE} with dates that rise, {valid: [DATES], test: [DATES]} or {period: DAYS, "
        "valid: [NUMBERS], test: [NUMBERS]} without a day in both",
    ),
    "stride": (_count, "the frames between sequences, an integer from 1"),
    "about": (_about, "attributes of forecast files, such as {institution: NAME, license: TEXT}"),
}
