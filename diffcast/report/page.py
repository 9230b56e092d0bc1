"""The HTML page: header, navigation and sections, all in one file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffcast.evaluation.parts import RAINY
from diffcast.report.evaluation import Entry, Evaluation
from diffcast.report.markup import Html, tag
from diffcast.report.svg import Chart, Curve, render
from diffcast.report.tables import name_cell

MOST_LINES = 6  # of a chart as it opens
STYLE = Path(__file__).with_name("page.css")


@dataclass(frozen=True)
class Section:
    """A titled part of the page, omitted if it has no content."""

    slug: str
    title: str
    content: Sequence[Html]


def page(title: str, header: Sequence[Html], sections: Sequence[Section], entries: int) -> str:
    """A complete HTML document about a number of entries."""
    sections = [section for section in sections if section.content]
    links = (tag("a", section.title, href=f"#{section.slug}") for section in sections)
    body = [
        tag("header", tag("h1", title), *header),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *(tag("section", tag("h2", each.title), *each.content, id=each.slug) for each in sections)),
    ]
    lines = [Curve((), (), series, variant=variant).line for series in range(entries) for variant in ("", "any")]
    hiding = "".join(f".{line}:not(:checked) ~ .panels g.{line} {{ display: none; }}\n" for line in lines)
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE.read_text(encoding="utf-8") + hiding)),
    ]
    return "<!doctype html>\n" + tag("html", tag("head", *head), tag("body", *body), lang="en") + "\n"


def panels(slug: str, charts: Sequence[Chart], entries: Sequence[Entry], note: str) -> list[Html]:
    """Charts below a note and check boxes that show and hide lines."""
    if not charts:
        return []
    curves = {curve.line: curve for chart in charts for curve in chart.curves if curve.series is not None}
    legend = sorted(curves.values(), key=lambda curve: (bool(curve.variant), curve.series))
    shown = lines_shown(charts, [curve.line for curve in legend])
    boxes = [part for curve in legend for part in _check_box(slug, curve, entries, curve.line in shown)]
    figures = [
        tag("figure", tag("figcaption", chart.title), Html(render(chart, f"{slug}-{number}")))
        for number, chart in enumerate(charts)
    ]
    if len(shown) < len(legend):
        note = f"{note} Tick a forecast to show its lines."
    return [tag("p", note, class_="note"), tag("div", *boxes, tag("div", *figures, class_="panels"), class_="charts")]


def lines_shown(charts: Sequence[Chart], lines: Sequence[str]) -> list[str]:
    """The lines shown as the page opens.

    A line is shown unless a chart would then exceed `MOST_LINES` curves. Earlier lines take precedence.
    """
    number = [sum(curve.series is None for curve in chart.curves) for chart in charts]
    shown = []
    for line in lines:
        more = [sum(curve.line == line for curve in chart.curves) for chart in charts]
        if all(old + new <= MOST_LINES for old, new in zip(number, more, strict=True) if new):
            shown.append(line)
            number = [old + new for old, new in zip(number, more, strict=True)]
    return shown


def _check_box(slug: str, curve: Curve, entries: Sequence[Entry], checked: bool) -> tuple[Html, Html]:
    name = f"{slug}-{curve.line}"
    label = [name_cell(entries, curve.series), f", {curve.variant} (dashed)" if curve.variant else ""]
    state = "checked" if checked else None
    box = tag("input", type="checkbox", id=f"show-{name}", class_=curve.line, checked=state, autocomplete="off")
    return box, tag("label", *label, for_=f"show-{name}")


def gallery(evaluation: Evaluation) -> list[Html]:
    """The cases with their pictures, in the order of the evaluation."""
    cases = evaluation.metrics.get("cases") or []
    note = f"Chosen by CRPS among sequences with rain on at least {RAINY:.0%} of the observed pixels, if there are any."
    return [tag("p", note, class_="note"), *(_case(evaluation.folder, case) for case in cases)] if cases else []


def _case(folder: Path, case: dict) -> Html:
    facts = f"CRPS {case['crps']:.4f}" + (f", rain on {case['rain']:.0%} of the pixels" if "rain" in case else "")
    heading = tag("h3", f"{case['why'].capitalize()}: {case['id']}", " ", tag("small", facts))
    files = [folder / Path(picture).name for picture in case["pictures"]]  # never from another folder
    return tag("article", heading, *(_picture(file, case["id"]) for file in files if file.is_file()), class_="case")


def _picture(path: Path, case: str) -> Html:
    """A picture of the folder; an animation is folded."""
    kind = path.suffix.removeprefix(".")
    data = base64.b64encode(path.read_bytes()).decode()
    image = tag("img", src=f"data:image/{kind};base64,{data}", alt=f"{case}, {path.name}", class_="picture")
    return tag("details", tag("summary", f"Animation: {path.stem}"), image) if kind == "gif" else image
