"""Frames found by the time in their names."""

import contextlib
import re
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone, tzinfo

import numpy as np

from utils.errors import InputError

DIGITS = {"Y": 4, "y": 2, "m": 2, "d": 2, "j": 3, "H": 2, "M": 2, "S": 2}
CENTURY = 69  # two digits from here on are of the 20th century, as in `strptime`
EPOCH = datetime(1970, 1, 1)
FOUND = np.dtype([(field, "<i8") for field in ("time", "mark", "size", "mtime")])  # about a frame of an archive
FRAME_ID = "%Y%m%dT%H%M%S"


class NamePattern:
    """A file name with parts of a time, as in `strftime`.

    The directives are `%Y %y %m %d %j %H %M %S`. A part may stand there more than once and must then say the same.
    Raises `InputError` for other directives, and for names that could leave the folder.
    """

    def __init__(self, text: str):
        self.text = text
        parts = text.split("/")
        if "\\" in text or any(part in ("", ".", "..") for part in parts):
            raise InputError(f"pattern must be a name below the folder, with / between its parts, not {text}.")
        seen: set[str] = set()
        levels = [_expression(text, part, seen) for part in parts]
        # one for each depth, so that folders which cannot hold a frame are not entered
        self._levels = [re.compile("/".join(levels[: depth + 1]), re.ASCII) for depth in range(len(levels))]

    def name_of(self, time: datetime) -> str:
        """Name of the frame at a time."""
        return time.strftime(self.text)

    def time_of(self, name: str) -> datetime | None:
        """Time of the frame with a name, None if there is none."""
        match = self._levels[-1].fullmatch(name)
        if match is None:
            return None
        part = _numbers(match)
        try:
            time = datetime(
                part["Y"], part.get("m", 1), part.get("d", 1), part.get("H", 0), part.get("M", 0), part.get("S", 0)
            )
            time += timedelta(days=part["j"] - 1) if "j" in part else timedelta()
        except (KeyError, ValueError, OverflowError):
            return None
        return time if self.name_of(time) == name else None

    def tells_apart(self, interval: float) -> bool:
        """Whether names say all of the times of frames `interval` minutes apart."""
        probes = [datetime(2023, 12, 31, 10) + n * timedelta(minutes=interval) for n in (0, 1, 7, 1000)]
        return all(self.time_of(self.name_of(time)) == time for time in probes)

    @property
    def depth(self) -> int:
        """Number of folders in a name."""
        return len(self._levels) - 1

    def leads_to(self, name: str, depth: int) -> bool:
        """Whether a folder `depth` folders below the first may hold frames."""
        return self._levels[depth].fullmatch(name) is not None

    def ends_before(self, name: str, depth: int, time: datetime) -> bool:
        """Whether a folder can only hold frames of days before a time."""
        part = _numbers(self._levels[depth].fullmatch(name))
        days = 1 if "j" in part or ("m" in part and "d" in part) else 31 if "m" in part else 366
        with contextlib.suppress(KeyError, ValueError, OverflowError):
            begin = datetime(part["Y"], part.get("m", 1), part.get("d", 1) if "m" in part else 1)
            return begin + timedelta(days=days + part.get("j", 1) - 1) <= time
        return False


def on_marks(times: np.ndarray, excluded: np.ndarray, interval: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """The nominal time of each frame, and whether the frame counts.

    All times are in seconds, and `times` rise. A nominal time is a multiple of the interval since 1970. Of the frames
    within the tolerance that are not excluded, the nearest one counts. Without a tolerance the times are nominal.
    """
    marks = np.rint(times / interval).astype(np.int64) * interval if tolerance else times
    distances = np.abs(times - marks)
    nearest_first = np.lexsort((distances, excluded, marks))
    _, nearest = np.unique(marks[nearest_first], return_index=True)
    counts = np.zeros(len(times), bool)
    counts[nearest_first[nearest]] = True
    return marks, counts & ~excluded & (distances <= tolerance)


def utc_of(local: datetime, zone: tzinfo) -> datetime | None:
    """Naive UTC time of a naive local time, None if clocks show that twice or never."""
    with contextlib.suppress(OverflowError):
        times = {local.replace(tzinfo=zone, fold=fold).astimezone(timezone.utc) for fold in (0, 1)}
        if len(times) == 1:
            return times.pop().replace(tzinfo=None)
    return None


def local_of(time: datetime, zone: tzinfo) -> datetime:
    """Naive local time of a naive UTC time."""
    return time.replace(tzinfo=timezone.utc).astimezone(zone).replace(tzinfo=None)


def seconds(time: datetime) -> int:
    """Seconds since 1970 of a naive UTC time."""
    return (time - EPOCH) // timedelta(seconds=1)


def moment(time: int) -> datetime:
    """Naive UTC time of seconds since 1970."""
    return EPOCH + timedelta(seconds=int(time))


def frame_id(time: int) -> str:
    """Time of a frame, as in 20230501T000000."""
    return f"{moment(time):{FRAME_ID}}"


def times_of(ids: Iterable[str]) -> list[int]:
    """Seconds since 1970 of frames by their ids; others are ignored."""
    times = []
    for one in ids:
        with contextlib.suppress(ValueError):
            times.append(seconds(datetime.strptime(one, FRAME_ID)))
    return times


def _numbers(match: re.Match[str]) -> dict[str, int]:
    """Parts of a time by directive, with a year of four digits."""
    part = {key: int(digits) for key, digits in match.groupdict().items()}
    if "y" in part:
        part.setdefault("Y", part["y"] + (1900 if part["y"] >= CENTURY else 2000))
    return part


def _expression(text: str, part: str, seen: set[str]) -> str:
    """Regular expression of a part of a pattern, after `seen` directives."""
    expression = ""
    for piece in re.findall("%.?|[^%]+", part):
        directive = piece[1:]
        if piece[0] != "%":
            expression += re.escape(piece)
        elif directive == "%":
            expression += "%"
        elif directive not in DIGITS:
            raise InputError(f"pattern {text} has {piece}; the directives are %{' %'.join(DIGITS)} and %%.")
        elif directive in seen:
            expression += f"(?P={directive})"
        else:
            expression += rf"(?P<{directive}>\d{{{DIGITS[directive]}}})"
            seen.add(directive)
    return expression
