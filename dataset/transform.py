"""Logarithmic scales of rain, which networks see in place of a linear one."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset.units import rain_rate
from utils.errors import InputError


@dataclass(frozen=True)
class Transform:
    """The scale `10 log10(1 + a (rate * value)^b)` of values from 0 up.

    For rain rates, `a` and `b` of Marshall and Palmer (1948) make it their reflectivity in dBZ, to 0.4 dB from 10 dBZ
    up. The 1 keeps 0 mm/h at 0, and all values between different from each other.
    """

    a: float
    b: float
    rate: float = 1.0  # mm/h of a value of 1

    def levels(self, values):
        """The levels of values, an array or tensor; values below 0 count as 0."""
        logarithm = torch.log10 if isinstance(values, Tensor) else np.log10
        return 10 * logarithm(1 + self.a * (self.rate * values.clip(min=0)) ** self.b)

    def values(self, levels):
        """The values of levels, an array or tensor; levels below 0 count as 0."""
        return ((10.0 ** (levels.clip(min=0) / 10) - 1) / self.a) ** (1 / self.b) / self.rate


def dbz(units: str, interval: float, a: float = 200.0, b: float = 1.6) -> Transform:
    """Make a scale like dBZ for a rain rate, or for its depth in an interval in minutes.

    The defaults are those of Marshall and Palmer (1948), J. Meteor. 5. Raises `InputError` for units of anything else.
    """
    rate = rain_rate(units, interval)
    if rate is None:
        raise InputError(f"transform dbz needs rain in units such as mm/h or mm, not in {units}; leave transform out")
    return Transform(a, b, rate)


def log(units: str, interval: float, unit: float = 0.1) -> Transform:
    """Make a scale that is linear well below a value `unit`, and logarithmic well above it."""
    return Transform(1 / unit, 1.0)


TRANSFORMS = {"dbz": dbz, "log": log}
NUMBERS = {"dbz": 2, "log": 1}  # that each takes, or none
