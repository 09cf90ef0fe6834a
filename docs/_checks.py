"""Checks of the pages written by hand: README.md, docs/*.md and docs/projects/*.md.

Covered: a relative link leads to a file or folder that exists; a fenced `python` example compiles; every drill of
tests/drills has a row in docs/reliability.md, and every row a drill. Not covered: links
to other sites, anchors, and whether an example does what the text says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

LINK = re.compile(r"(?<!`)\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
FENCE = re.compile(
    r"^(?P<indent>[ ]*)(?P<mark>`{3,})(?P<kind>[^\n]*)\n(?P<body>.*?)^(?P=indent)(?P=mark)[ ]*$", re.M | re.S
)

DRILL = re.compile(r"@pytest\.mark\.drill\(\s*(\d+),")
ROW = re.compile(r"^\| (\d+) \|", re.M)


def problems(root: Path) -> list[str]:
    """One line for each dead link, broken example and missing row."""
    found = []
    for page in [*sorted(root.glob("*.md")), *sorted(root.glob("docs/*.md")), *sorted(root.glob("docs/projects/*.md"))]:
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(root)
        found += [f"{name}, line {line}: {what}" for line, what in sorted([*_links(page, text), *_examples(text)])]
    return found + list(_drills(root))


def _drills(root: Path) -> Iterator[str]:
    drills = {
        int(number) for path in root.glob("tests/drills/*.py") for number in DRILL.findall(path.read_text("utf-8"))
    }
    page = root / "docs" / "reliability.md"
    rows = {int(number) for number in ROW.findall(page.read_text("utf-8"))} if page.exists() else set()
    for number in sorted(drills ^ rows):
        lacks = "has no row" if number in drills else "has a row and is not there"
        yield f"docs/reliability.md: drill {number} {lacks}. Run `make drills`."


def _links(page: Path, text: str) -> Iterator[tuple[int, str]]:
    # What stands in a code block is no link; its lines stay, so that numbers hold.
    prose = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for link in LINK.finditer(prose):
        target = unquote(link[1].split("#", 1)[0])
        if target and not re.match(r"[a-z][a-z+.-]*:", target) and not (page.parent / target).exists():
            yield _line(prose, link.start()), f"the link to {target} leads nowhere. Correct it."


def _examples(text: str) -> Iterator[tuple[int, str]]:
    for block in FENCE.finditer(text):
        if block["kind"].split()[:1] != ["python"]:
            continue
        indent, first = block["indent"], _line(text, block.start("body"))
        body = "\n".join(line.removeprefix(indent) for line in block["body"].splitlines())
        try:
            compile(body, "example", "exec", dont_inherit=True)
        except SyntaxError as error:
            yield first + (error.lineno or 1) - 1, f"the example does not compile: {error.msg}. Correct it."


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1
