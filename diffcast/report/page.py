"""The page: header, navigation, sections of tables and panels, the gallery; nothing is loaded from elsewhere."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffcast.report.evaluation import Entry, Evaluation
from diffcast.report.markup import Html, escape, join, tag
from diffcast.report.svg import Chart, render
from diffcast.report.tables import name_cell

MEDIA_TYPES = {".gif": "image/gif", ".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class Section:
    """A titled part of the page; one without content is left out."""

    slug: str
    title: str
    content: Sequence[Html]


def page(title: str, header: Sequence[Html], sections: Sequence[Section]) -> str:
    """A complete HTML document."""
    sections = [section for section in sections if section.content]
    links = (tag("a", section.title, href=f"#{section.slug}") for section in sections)
    body = [
        tag("header", tag("h1", title), *header),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *(_section(section) for section in sections)),
        tag("script", Html(_asset("page.js"))),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(_asset("page.css"))),
    ]
    return "<!doctype html>\n" + tag("html", tag("head", *head), tag("body", *body), lang="en") + "\n"


def panels(slug: str, charts: Sequence[Chart], entries: Sequence[Entry], note: str) -> list[Html]:
    """Charts side by side as wide as the window allows, below a legend and a sentence on how to read them."""
    if not charts:
        return []
    shown = sorted({curve.series for chart in charts for curve in chart.curves if curve.series is not None})
    legend = tag("p", *(name_cell(entries, series) for series in shown), class_="legend")
    figures = [
        tag("figure", tag("figcaption", chart.title), Html(render(chart, f"{slug}-{number}")))
        for number, chart in enumerate(charts)
    ]
    return [tag("p", note, class_="note"), legend, tag("div", *figures, class_="panels")]


def gallery(evaluation: Evaluation) -> list[Html]:
    """The cases with their pictures, in the order of the evaluation."""
    cases = [_case(evaluation.folder, case) for case in evaluation.metrics.get("cases") or []]
    button = tag("button", "Pause animations", type="button", id="pause", hidden="hidden")
    return [button, *cases] if cases else []


def _case(folder: Path, case: dict) -> Html:
    why, name, crps = case.get("why"), case.get("id", ""), case.get("crps")
    heading = f"{str(why).capitalize()}: {name}" if why else name
    score = f"CRPS {crps:.4f}" if isinstance(crps, float) else ""
    files = [folder / Path(picture).name for picture in case.get("pictures") or []]  # never from another folder
    pictures = [_picture(file, f"{name}, {file.name}") for file in _animations_else_stills(files)]
    return tag("article", tag("h3", heading, " ", tag("small", score)), *pictures, class_="case")


def _animations_else_stills(files: Sequence[Path]) -> list[Path]:
    """The pictures, without the stills of which there is an animation: a page with both is larger and says no more."""
    animated = {file.stem for file in files if file.suffix.lower() == ".gif" and file.is_file()}
    return [file for file in files if file.suffix.lower() == ".gif" or file.stem not in animated]


def _picture(path: Path, description: str) -> Html:
    """A picture of the folder as part of the page; nothing if it is not there."""
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None or not path.is_file():
        return escape("")
    data = base64.b64encode(path.read_bytes()).decode()
    return tag("img", src=f"data:{media_type};base64,{data}", alt=description, class_="picture")


def _section(section: Section) -> Html:
    return tag("section", tag("h2", section.title), join(section.content), id=section.slug)


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
