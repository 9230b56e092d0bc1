"""Charts as SVG in the colours and fonts of the page."""

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import ArrayLike

INK, MUTED, GRID = "#010101", "#010102", "#010103"  # never seen: each becomes a variable of the page
SERIES = tuple(f"#0102{i:02x}" for i in range(8))
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {color: f"series-{i}" for i, color in enumerate(SERIES)}
MARKERS = "os^DvPX"  # fewer than colours by one, so that the pairs repeat late
GLYPHS = "●■▲◆▼✚✖"
MOST_MARKERS = 12  # on curves that show all their points
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SIZE = (4.0, 2.9)  # inches
MARGINS = {"left": 0.155, "right": 0.97, "bottom": 0.15, "top": 0.97, "hspace": 0.1}  # constrained layout is slow
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.6,
}


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    With `stairs`, `x` holds the edges of the steps, one more than `y`.
    """

    x: ArrayLike
    y: ArrayLike
    series: int | None = None  # number of its entry; None: a reference, drawn in ink
    dash: str | tuple = "-"
    variant: str = ""  # name of a line that readers show and hide apart from the entry's own, such as "ensemble mean"
    stairs: bool = False

    @property
    def line(self) -> str:
        """The class of its SVG group."""
        return f"line-{self.series}" + ("-variant" if self.variant else "")


@dataclass(frozen=True)
class Chart:
    """One panel with curves, and with `counts` in a strip below."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_log: bool = False
    y_log: bool = False
    x_ticks: Sequence[float] | None = None
    counts: Sequence[Curve] = ()


def render(chart: Chart, slug: str) -> str:
    """Draw a chart as an `<svg>` element whose ids begin with `slug`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        figure.subplots_adjust(**MARGINS)
        if chart.counts:
            axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
            _draw_counts(below, chart)
        else:
            axes = below = figure.subplots()
        _draw_curves(axes, chart)
        below.set_xlabel(chart.x_label)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _adapt(buffer.getvalue(), slug, f"{chart.title}: {chart.y_label} against {chart.x_label}")


def _draw_curves(axes: Axes, chart: Chart) -> None:
    for curve in chart.curves:
        _draw_curve(axes, curve)
    axes.set_ylabel(chart.y_label)
    if chart.y_log:
        _log_axis(axes)
    if chart.x_log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if chart.x_ticks is not None:
        axes.set_xticks(chart.x_ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if chart.x_range:
        axes.set_xlim(*chart.x_range)
    if chart.y_range:
        axes.set_ylim(*chart.y_range)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    x, y = np.asarray(curve.x, dtype=np.float64), np.asarray(curve.y, dtype=np.float64)
    color = INK if curve.series is None else SERIES[curve.series % len(SERIES)]
    if curve.stairs:
        drawn = axes.stairs(y, x, color=color, linestyle=curve.dash, linewidth=1.6, baseline=None)
    elif curve.series is None:
        (drawn,) = axes.plot(x, y, color=color, linestyle=curve.dash, linewidth=1.1)
    else:
        marker = MARKERS[curve.series % len(MARKERS)]
        # Far apart on long curves, and staggered, so that markers of coinciding curves do not hide each other.
        every = (0.02 * curve.series, 0.16) if len(x) > MOST_MARKERS else 1
        (drawn,) = axes.plot(x, y, color=color, linestyle=curve.dash, marker=marker, markevery=every)
    drawn.set_gid(curve.line)


def _draw_counts(axes: Axes, chart: Chart) -> None:
    for curve in chart.counts:
        _draw_curve(axes, curve)
    _log_axis(axes)
    axes.set_ylabel("pixels")


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_ten(value)))


def _power_of_ten(value: float) -> str:
    exponent = str(round(math.log10(value))).translate(SUPERSCRIPTS)
    return f"10{exponent}"


def _adapt(svg: str, slug: str, description: str) -> str:
    """Turn an SVG file into an element in the colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' id="(line-[^"]*)"', r' class="\1"', svg)
    svg = re.sub(r'( id="| href="#|url\(#)', rf"\g<1>{slug}-", svg)
    svg = re.sub("|".join(VARIABLES), lambda match: f"var(--{VARIABLES[match[0]]})", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
