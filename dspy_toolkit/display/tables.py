"""How things look on a terminal: lists, properties, numbers. Shared by the commands and the flows' last table.

Nothing here prints by itself; `console()` is what prints.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dspy_toolkit.printable import printable


class _Console(Console):
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        # All output passes through here; control sequences of Rich itself are marked as such.
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        # Rich would exit with code 1; the boundary ends the command with 0.
        raise BrokenPipeError


def console(*, stderr: bool = False, width: int | None = None, file: IO[str] | None = None) -> Console:
    """A console on stdout (or stderr, or `file`) that prints no control character of a text.

    It is 80 columns wide where the output is no terminal.
    """
    return _Console(stderr=stderr, width=width, file=file, highlight=False)


def listing(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> Table:
    """A table with a heading for each column. None is shown as an empty cell."""
    table = Table(box=None, title=title or None, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def properties(pairs: Iterable[tuple[str, Any]], title: str = "") -> Table:
    """Names beside values, for one thing."""
    table = Table(box=None, show_header=False, title=title or None, title_justify="left", pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), _cell(value))
    return table


def percent(share: float) -> str:
    """A share in [0, 1]: `31.7 %`."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares: `+2.5 points`."""
    return f"{100 * difference:+.1f} points"


def program(name: str) -> str:
    """How to call a program of this Python's environment from here: bare where the shell finds it, else by its path."""
    own = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(own):
        return name
    here = Path.cwd()
    return str(own.relative_to(here) if own.is_relative_to(here) else own)


def opening(path: Path) -> str:
    """The command that opens a file in the system's viewer."""
    here = Path.cwd()
    near = path.relative_to(here) if path.is_relative_to(here) else path
    return f"{'open' if sys.platform == 'darwin' else 'xdg-open'} {shlex.quote(str(near))}"


def _cell(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, datetime):
        return Text(value.astimezone().strftime("%Y-%m-%d %H:%M"))
    # Text, not a plain string: square brackets in a value are no markup.
    return Text("" if value is None else printable(str(value)))
