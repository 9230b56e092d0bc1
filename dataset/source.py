"""Scale, thresholds, colours and units of data sources."""

import math
from dataclasses import dataclass, replace

import numpy as np

from dataset.transform import Transform

FINE_LEVELS = 65534  # of frames that are stored in 16 bits, whose last value is for missing pixels


@dataclass(frozen=True)
class Source:
    """Scale, thresholds, colours and units of one kind of radar frames.

    A frame value in [0, 1] stands for a share of the range from `offset` to `offset + scale` in `units`. It is that
    share itself, unless a `transform` makes the networks see the range on a logarithmic scale. `thresholds` and
    `bounds` are in `units`, too. `colors[i]` paints values in `[bounds[i], bounds[i + 1])`.
    """

    name: str
    scale: float
    units: str
    thresholds: tuple[float, ...]
    bounds: tuple[float, ...]
    colors: tuple[str, ...]
    interval: float  # minutes between frames
    extent: float  # width of a frame in km
    offset: float = 0.0
    synthetic: bool = False  # made by `dataset.synthetic.writer`; results and pictures say so
    transform: Transform | None = None  # the scale on which networks see values, None: linear

    @property
    def steps(self) -> tuple[float, ...]:
        """What `scale * x` reaches where the value reaches the thresholds."""
        return tuple(map(self.step, self.thresholds))

    def step(self, value: float) -> float:
        """What `scale * x` of a frame reaches where its value in units reaches this one.

        With a transform it is rounded to the 16 bits of stored frames, so that a value just there is not below it.
        """
        if self.transform is None:
            return value - self.offset
        level = np.rint(FINE_LEVELS * self.to_frames(np.float64(value)))
        return float(np.float32(self.scale) * (np.float32(level) / np.float32(FINE_LEVELS)))

    def in_units(self, frames):
        """Physical values of frames, an array or tensor in [0, 1]."""
        return self.offset + self.scale * self.shares(frames)

    def to_frames(self, values):
        """Frames of physical values, the inverse of `in_units`; values outside the range leave [0, 1]."""
        return self.frames((values - self.offset) / self.scale)

    def shares(self, frames):
        """Shares of the range in units, of frames in [0, 1]; both are an array or tensor."""
        if self.transform is None:
            return frames
        low, high = self._ends()
        return (self.transform.values(low + (high - low) * frames) - self.offset) / self.scale

    def frames(self, shares):
        """Frames of shares of the range in [0, 1], the inverse of `shares`."""
        if self.transform is None:
            return shares
        low, high = self._ends()
        return (self.transform.levels(self.offset + self.scale * shares) - low) / (high - low)

    def _ends(self) -> tuple[float, float]:
        """Levels of the transform that the range goes from and to."""
        return tuple(self.transform.levels(np.array([self.offset, self.offset + self.scale])).tolist())


def vil(byte: float) -> float:
    """Vertically integrated liquid in kg/m2 of a byte of SEVIR.

    Veillette et al. 2020, NeurIPS 33.
    """
    if byte <= 5:
        return 0.0
    return (byte - 2) / 90.66 if byte <= 18 else math.exp((byte - 83.9) / 38.9)


PHYSICAL = {"VIL byte": (vil, "kg/m²")}  # units that are steps of a scale -> their meaning


def physical(value: float, units: str) -> str:
    """A value in physical units, such as "3.5 kg/m²" for byte 133 of VIL.

    Empty if `units` are physical already.
    """
    meaning, name = PHYSICAL.get(units, (None, ""))
    return f"{meaning(value):.2g}\N{NO-BREAK SPACE}{name}" if meaning else ""


def synthetic(source: Source) -> Source:
    """The same kind of frames, of storms that `dataset.synthetic.writer` made."""
    return replace(source, name="synthetic storms", synthetic=True)


COLORS = (
    "#f2f2f2",
    "#b5bcc2",
    "#9ad1a0",
    "#4fae62",
    "#1f8a44",
    "#0b5d2e",
    "#f4dc3a",
    "#f39a1e",
    "#dd3b22",
    "#8e1f8f",
)

VIL = Source(
    name="VIL",
    scale=255.0,
    units="VIL byte",
    thresholds=(16, 74, 133, 160, 181, 219),
    bounds=(0, 16, 31, 59, 74, 100, 133, 160, 181, 219, 255),
    colors=COLORS,
    interval=5.0,
    extent=384.0,
)

VIL_10MIN = replace(VIL, interval=10.0)  # SEVIR-LR: every second frame of SEVIR

# Scales and thresholds of the three below: the released code of DiffCast (Yu et al., CVPR 2024).
SHANGHAI = Source(
    name="Shanghai radar",
    scale=90.0,
    units="dBZ",
    thresholds=(20, 30, 35, 40),
    bounds=(0, 10, 15, 20, 25, 30, 35, 40, 50, 60, 90),
    colors=COLORS,
    interval=6.0,
    extent=501.0,
)

METEONET = Source(
    name="MeteoNet radar",
    scale=90.0,
    units="dBZ",
    thresholds=(12, 18, 24, 32),
    bounds=(0, 6, 12, 18, 24, 32, 40, 48, 56, 64, 90),
    colors=COLORS,
    interval=5.0,
    extent=572.0,  # 7.84 degrees of longitude in the middle of the north-west; those of the south-east are 10 % longer
)

CIKM = replace(SHANGHAI, name="CIKM radar", extent=128.0)  # 101 km of radar and the padding around it
