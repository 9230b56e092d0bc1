"""HTML in which text is escaped unless it is `Html` already."""

import html
import re


class Html(str):
    """Text that is markup."""

    __slots__ = ()


VOID = ("img", "input", "meta", "br")


def escape(text: object) -> Html:
    """Markup that shows the text as it is."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Attributes that are None are left out.

    In their names, a trailing underscore is dropped (`class_`) and others become hyphens (`aria_label`).
    """
    pairs = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = "".join(f' {key}="{html.escape(str(value))}"' for key, value in pairs.items())
    content = "".join(escape(child) for child in children)
    return Html(f"<{name}{opening}>" if name in VOID else f"<{name}{opening}>{content}</{name}>")


def table(header: list[object], rows: list[list[object]], caption: str, **attributes: object) -> Html:
    """A table whose first column names the rows.

    If a row has a single cell, that cell spans all columns. Each other cell repeats the heading of its column, which
    the style shows in narrow windows.
    """
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [tag("tr", tag("th", name, scope="row"), *_cells(header[1:], cells)) for name, *cells in rows]
    return tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), **attributes)


def _cells(headings: list[object], cells: list[object]) -> list[Html]:
    if len(cells) < len(headings):
        return [tag("td", *cells, colspan=len(headings))]
    return [tag("td", cell, data_heading=_text(name)) for name, cell in zip(headings, cells, strict=True)]


def _text(content: object) -> str:
    """Text without the markup around it."""
    return html.unescape(re.sub("<[^>]*>", "", content)) if isinstance(content, Html) else str(content)
