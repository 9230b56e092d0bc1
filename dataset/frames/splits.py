"""Which frames are for training, validation and test."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

DAY = 86400  # seconds


class Split(Protocol):
    """A rule that gives each frame a split."""

    def numbers(self, times: np.ndarray) -> np.ndarray:
        """Index in `SPLITS` of each frame; `times` in seconds since 1970."""


@dataclass(frozen=True)
class ByTimes:
    """Training comes first, then validation, then test."""

    valid_from: int  # seconds since 1970
    test_from: int

    def numbers(self, times: np.ndarray) -> np.ndarray:
        """Index in `SPLITS` of each frame; `times` in seconds since 1970."""
        return np.searchsorted([self.valid_from, self.test_from], times, "right")


@dataclass(frozen=True)
class ByDays:
    """Days (UTC) of validation and test; the others are for training.

    Days count from 1970-01-01, which is day 0. With a period, these are days of the period, from 1 to `period`.
    """

    valid: tuple[int, ...]
    test: tuple[int, ...]
    period: int | None = None

    def fits(self) -> bool:
        """Whether there is a day of each split, and none in both."""
        highest = max((*self.valid, *self.test), default=0)
        inside = self.period is None or highest <= self.period
        return inside and bool(self.valid) and bool(self.test) and not set(self.valid) & set(self.test)

    def numbers(self, times: np.ndarray) -> np.ndarray:
        """Index in `SPLITS` of each frame; `times` in seconds since 1970."""
        days = times // DAY if self.period is None else times // DAY % self.period + 1
        return np.isin(days, self.valid) + 2 * np.isin(days, self.test)


def shared_days(split: Split, times: np.ndarray) -> np.ndarray:
    """Days with frames of more than one split, counted from 1970."""
    pairs = np.unique(np.stack([times // DAY, split.numbers(times)]), axis=1)
    days, splits = np.unique(pairs[0], return_counts=True)
    return days[splits > 1]
