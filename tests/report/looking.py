"""A page as a browser and a screen reader meet it: parsed strictly, with what every page promises checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "path", "line", "circle", "polygon"}
"""Without an end tag; of SVG those that were closed in themselves."""
INSIDE_P = {"div", "p", "ul", "ol", "dl", "table", "section", "figure", "details", "h1", "h2", "h3", "h4", "h5"}
"""What ends a paragraph without being asked."""


@dataclass
class Table:
    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)


class Seen(HTMLParser):
    """What stands on a page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.tables: list[Table] = []
        self.text = ""
        self.style = ""
        self._cell: str | None = None
        self._heading: str | None = None
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        assert not ("p" in self.open and tag in INSIDE_P), f"<{tag}> inside a <p>"
        if tag in VOID and tag not in ("circle", "polygon"):
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append(Table())
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("td", "th", "caption"):
            self._cell = ""
        if re.fullmatch(r"h[1-6]", tag):
            self._heading = ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        if tag in ("td", "th", "caption"):
            cell = " ".join((self._cell or "").split())
            self._cell = None
            if tag == "caption":
                self.tables[-1].caption = cell
            else:
                self.tables[-1].rows[-1].append(cell)
        if self._heading is not None and re.fullmatch(r"h[1-6]", tag):
            self.headings.append((int(tag[1]), " ".join(self._heading.split())))
            self._heading = None

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
            return
        self.text += data
        if self._cell is not None:
            self._cell += data
        if self._heading is not None:
            self._heading += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> stands twice"
        self.attributes.append((tag, dict(attrs)))

    def section(self, title: str) -> bool:
        return any(text == title for level, text in self.headings if level == 2)

    def table(self, caption: str) -> list[list[str]]:
        """Its rows, the head first."""
        (found,) = [table for table in self.tables if table.caption.startswith(caption)]
        return found.rows


def look(html: str) -> Seen:
    """Parse a page, and check what holds of every page."""
    assert html.startswith("<!doctype html>")
    assert html.isascii() or html.encode("utf-8")
    seen = Seen(html)
    ids = [attrs["id"] for _, attrs in seen.attributes if "id" in attrs]
    assert len(ids) == len(set(ids)), "an id stands twice"
    for tag, attrs in seen.attributes:
        assert not {"src", "srcset", "data", "action", "background", "poster"} & attrs.keys(), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        assert "style" not in attrs, (tag, attrs)
        for name in ("href", "xlink:href"):
            if name in attrs:
                assert (attrs[name] or "")[:1] == "#" and (attrs[name] or "")[1:] in ids, (
                    f"{tag} leads to {attrs[name]}"
                )
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
        if tag == "th":
            assert attrs.get("scope") in ("row", "col")
        if attrs.get("role") == "img":
            assert attrs.get("aria-label")
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & set(seen.tags)
    assert "url(" not in seen.style and "@import" not in seen.style
    assert all(table.caption for table in seen.tables)
    levels = [level for level, _ in seen.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels)), seen.headings
    for table in seen.tables:
        assert len({len(row) for row in table.rows}) == 1, table
    return seen
