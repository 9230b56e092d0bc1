"""What the rest of the project needs to know about the values of a data source."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Scale, thresholds, colours and units of one kind of radar frames.

    A frame value `x` in [0, 1] stands for `scale * x` in `units`; `thresholds` and `bounds` are in `units` too.
    `colors[i]` paints values in `[bounds[i], bounds[i + 1])`.
    """

    name: str
    scale: float
    units: str
    thresholds: tuple[float, ...]
    bounds: tuple[float, ...]
    colors: tuple[str, ...]
    interval: float  # minutes between frames
    extent: float  # width of a frame in km


VIL = Source(
    name="VIL",
    scale=255.0,
    units="VIL byte",
    thresholds=(16, 74, 133, 160, 181, 219),
    bounds=(0, 16, 31, 59, 74, 100, 133, 160, 181, 219, 255),
    colors=(
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
    ),
    interval=5.0,
    extent=384.0,
)
