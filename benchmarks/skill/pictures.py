"""Pictures of the small benchmark, see `benchmarks.skill`."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.files import replacing

FRAME_MINUTES = 5
PIXEL_KM = 16
STYLES = {  # label -> colour, dash
    "DiffCast": ("#c0392b", "-"),
    "its backbone": ("#2471a3", "-"),
    "its backbone, dressed": ("#2471a3", "--"),
    "backbone alone": ("#229954", "-"),
    "backbone alone, dressed": ("#229954", "--"),
    "advection": ("#7d7d7d", "-"),
    "advection, dressed": ("#7d7d7d", "--"),
    "persistence": ("#000000", ":"),
}


def draw_results(backbones: dict, folder: Path) -> None:
    """Draw `crps.png`, `csi.png` and `spectra.png`, with a panel for each backbone.

    `backbones` is an entry of `results.json`. Curves are means over seeds. Where there are several seeds, bands reach
    from the lowest to the highest.
    """
    _draw(backbones, folder / "crps.png", _crps)
    _draw(backbones, folder / "csi.png", _csi)
    _draw(backbones, folder / "spectra.png", _spectra)


def _draw(backbones: dict, path: Path, draw_panel) -> None:
    figure = Figure(figsize=(1.0 + 3.6 * len(backbones), 4.4), layout="constrained")
    panels = figure.subplots(1, len(backbones), sharey=True, squeeze=False)[0]
    for axes, (name, seeds) in zip(panels, backbones.items(), strict=True):
        axes.set_title(f"{name}, synthetic storms")
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw_panel(axes, [seed["scores"] for seed in seeds.values()])
    for axes in panels[1:]:
        axes.set_ylabel("")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, 2 * len(panels)), frameon=False
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _crps(axes: Axes, seeds: list[dict]) -> None:
    for label in STYLES:
        _curve(axes, label, [scores[label]["crps_per_lead"] for scores in seeds])
    axes.set_ylabel("CRPS, share of full scale")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("lead time (min)")


def _csi(axes: Axes, seeds: list[dict]) -> None:
    shown = ("DiffCast", "its backbone", "backbone alone", "advection", "persistence")
    for label in shown:
        _curve(axes, label, [scores[label]["csi_per_lead"] for scores in seeds])
    matched = [scores["DiffCast"]["pm_mean"]["csi_per_lead"] for scores in seeds]
    _curve(axes, "DiffCast", matched, name="probability-matched mean", dash="--")
    axes.set_ylabel("CSI-M (DiffCast: mean over members)")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("lead time (min)")


def _spectra(axes: Axes, seeds: list[dict]) -> None:
    for label in STYLES:
        frequency = np.array(seeds[0][label]["spectrum_frequency"])
        wave = frequency > 0
        ratios = [np.divide(scores[label]["spectrum"], scores[label]["spectrum_target"])[wave] for scores in seeds]
        _curve(axes, label, ratios, PIXEL_KM / frequency[wave])
    axes.axhline(1, color="#000000", linewidth=0.8)
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = [32, 64, 128, 256]
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.minorticks_off()
    axes.set_ylim(0, 1.5)
    axes.set_xlabel("wavelength (km)")
    axes.set_ylabel("power relative to the observed")


def _curve(axes: Axes, label: str, seeds: list, x=None, name: str | None = None, dash: str | None = None) -> None:
    values = np.array(seeds, dtype=np.float64)
    x = FRAME_MINUTES * np.arange(1, values.shape[1] + 1) if x is None else x
    color, usual = STYLES[label]
    axes.plot(x, values.mean(axis=0), color=color, linestyle=dash or usual, label=name or label)
    if len(values) > 1:
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)
