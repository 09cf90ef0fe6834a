"""The table of docs/reliability.md: fault → what was seen → time to recover. It is made by the drills, never by hand."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- drills: made by `make drills` -->", "<!-- end of drills -->"
SEEN = "drill"
"""The key of a test's property that holds what was seen."""
HEAD = "| | fault | what was seen | time to recover |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Seen:
    """What a drill saw."""

    what: str
    seconds: float | None = None

    def __str__(self) -> str:
        time = "" if self.seconds is None else f"{self.seconds:.1f} s" if self.seconds < 10 else f"{self.seconds:.0f} s"
        return f"{self.what} | {time}"


class Collected:
    """A plugin of pytest that puts what a drill saw into the table as soon as it has ended: all of them take an hour or two."""

    def __init__(self) -> None:
        self.seen: dict[int, Seen] = {}
        self._numbers: dict[str, int] = {}

    def pytest_itemcollected(self, item: Any) -> None:
        if marker := item.get_closest_marker("drill"):
            self._numbers[item.nodeid] = marker.args[0]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if (number := self._numbers.get(report.nodeid)) is None:
            return
        if report.failed:
            self.seen[number] = Seen("**the drill failed**")
        elif report.when == "call":
            for name, seen in report.user_properties:
                if name == SEEN:
                    self.seen[number] = Seen(*seen)
        if number in self.seen:
            write({number: self.seen[number]})


def drills() -> dict[int, str]:
    """The number of every drill and its fault, as the tests' marks say."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.drill":
                number, fault = map(ast.literal_eval, node.args)
                found[number] = fault
    return found


def write(seen: dict[int, Seen]) -> None:
    """Put what was seen into the page's table; rows of drills that were not run stay as they are."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    old = {int(found[1]): found[2] for found in re.finditer(r"^\| (\d+) \| [^|]+ \| (.*) \|$", table, re.M)}
    rows = [
        f"| {number} | {fault} | {seen.get(number) or old.get(number) or Seen('not run yet')} |"
        for number, fault in sorted(drills().items())
    ]
    PAGE.write_text(f"{before}{BEGIN}\n\n{HEAD}" + "\n".join(rows) + f"\n\n{END}{after}", encoding="utf-8")
