"""Markup that cannot be injected into: text is escaped unless it is `Html` already."""

import html


class Html(str):
    """Text that is markup."""

    __slots__ = ()


VOID = ("img", "meta", "br")


def escape(text: object) -> Html:
    """Markup that shows the text as it is."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. `class_` stands for `class`, underscores for hyphens; attributes that are None are left out."""
    pairs = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = "".join(f' {key}="{html.escape(str(value))}"' for key, value in pairs.items())
    content = join(children)
    return Html(f"<{name}{opening}>" if name in VOID else f"<{name}{opening}>{content}</{name}>")


def join(children) -> Html:
    """Elements and texts one after the other."""
    return Html("".join(escape(child) for child in children))


def table(header: list[object], rows: list[list[object]], caption: str, **attributes: object) -> Html:
    """A table whose first column names the rows; a cell that is no `<td>` yet becomes one. Scrolls if too wide."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [tag("tr", tag("th", name, scope="row"), *map(_cell, cells)) for name, *cells in rows]
    content = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), **attributes)
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _cell(content: object) -> Html:
    return content if isinstance(content, Html) and content.startswith("<td") else tag("td", content)
