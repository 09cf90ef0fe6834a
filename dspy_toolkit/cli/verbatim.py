"""A text that a command prints exactly as it is, among what it lays out for the terminal: a message, a reply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.segment import Segment


@dataclass(frozen=True)
class Verbatim:
    """`text` with its own lines, tabs and spaces, at any width. Print what holds it with `crop=False`."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        # Rich's own Text folds lines, widens tabs and drops carriage returns unsaid.
        yield Segment(self.text)
        yield Segment.line()
