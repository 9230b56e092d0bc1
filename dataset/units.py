"""Spellings of physical units, such as `mm/h` and `kg m-2 hr^-1`."""

import re
from collections import Counter

NAMES = {
    **dict.fromkeys(("hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("minute", "minutes", "mins"), "min"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
    **dict.fromkeys(("millimeter", "millimeters", "millimetre", "millimetres"), "mm"),
}
DEPTHS = {"mm": 1, "cm": 10, "m": 1000}  # in mm
PERIODS = {"h": 1, "min": 1 / 60, "s": 1 / 3600}  # in hours
NOTHING = ("", "1", "-", "none", "unknown")  # what writers put where they know no units


def same_units(one: str, other: str) -> bool:
    """Whether two spellings mean the same units."""
    return _factors(one) == _factors(other)


def rain_rate(units: str, interval: float) -> float | None:
    """The rain rate in mm/h that 1 in these units is, None if they are none of rain.

    A depth, such as mm, falls within an interval in minutes.
    """
    factors = _factors(units)
    for depth, millimetres in DEPTHS.items():
        if factors == Counter({depth: 1}):
            return millimetres / (interval / 60)
        for period, hours in PERIODS.items():
            if factors == Counter({depth: 1, period: -1}):
                return millimetres / hours
    return None


def _factors(text: str) -> Counter | str:
    """Exponents by unit, 1 kg m-2 being 1 mm, or the text."""
    text = " ".join(text.lower().split())
    product = re.sub(" ?(/|\\bper\\b) ?", " /", text).replace("**", "").replace("^", "")
    factors = Counter()
    for part in re.split("[ .*·]+", product.strip()):
        match = re.fullmatch(r"(/?)([a-z%]+)([-+]?[0-9]{1,2})?", part)
        if match is None:
            return text
        exponent = int(match[3] or 1)
        factors[NAMES.get(match[2], match[2])] += -exponent if match[1] else exponent
    if factors["kg"] == 1 and factors["m"] == -2:
        factors.update({"kg": -1, "m": 2, "mm": 1})
    return Counter({unit: exponent for unit, exponent in factors.items() if exponent})
