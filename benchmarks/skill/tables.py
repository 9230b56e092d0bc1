"""Tables in Markdown."""

import statistics
from collections.abc import Sequence

SCORES = {  # of ensembles: key -> heading, digits
    "crps": ("CRPS", 4),
    "crps_fair": ("fair", 4),
    "csi": ("CSI-M", 3),
    "csi_pool4": ("CSI-pool4", 3),
    "spread_skill_ratio": ("spread / skill", 2),
    "rank_deviation": ("RI", 2),
    "rank_deviation_wet": ("RI, wet", 2),
    "spectrum_ratio_high": ("octave", 2),
}


def table_head(cells: list[str]) -> list[str]:
    """The first two lines of a table."""
    return [table_row(cells), "|" + "---|" * len(cells)]


def table_row(cells: list[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def number(value: float | None, digits: int) -> str:
    """Format a number; a missing value is empty."""
    return "" if value is None else f"{value:.{digits}f}"


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean, None if a value is missing."""
    return None if any(value is None for value in values) else statistics.mean(values)


def interval(difference: dict, factor: float = 1, digits: int = 4) -> str:
    """Format `value [low, high]`, each times a factor.

    A value without an interval stands alone, and a missing value is empty.
    """
    if difference["value"] is None:
        return ""
    if difference["low"] is None:
        return f"{factor * difference['value']:+.{digits}f}"
    value, low, high = (factor * difference[key] for key in ("value", "low", "high"))
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
