"""What a person sees while a flow runs: a line for each step, with a bar, a count and the time left where there is one.

`with terminal():` shows the steps of the block on stderr, as moving bars on a terminal and as plain lines elsewhere.
Steps report through `step(name)` wherever they run; without `terminal()` they only keep a count, which the
orchestrator's own page can show.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_showing: Any = None
"""The display of this process, while one is shown. A global: tasks run in other threads and contexts than the flow."""


class Reporter:
    """One step's count. Safe from any thread."""

    def __init__(self, name: str) -> None:
        self.name, self.doing = name, ""
        self.done = self.total = 0
        self.finished = False
        self._task: Any = None

    @property
    def percent(self) -> float:
        """0 to 100."""
        return 100.0 if self.finished else 100.0 * self.done / self.total if self.total else 0.0

    def calls(self, done: int, total: int, doing: str) -> None:
        """Set the calls or rows done, the number of all, and what is going on."""
        self.done, self.total, self.doing = done, total, doing
        if _showing is not None and self._task is not None:
            _showing.update(self._task, completed=done, total=total, doing=doing)

    def finish(self) -> None:
        """The step is over."""
        self.finished = True

    def begin(self) -> None:
        """Show a line for this step."""
        if _showing is not None:
            self._task = _showing.add_task(self.name, total=None, doing="")

    def end(self, seconds: float, *, failed: bool) -> None:
        """Replace the step's line by its result."""
        if _showing is None or self._task is None:
            return
        _showing.remove_task(self._task)
        mark = "[red]✗[/red]" if failed else "[green]✓[/green]"
        counted = f"{self.done}/{self.total}" if self.total else ""
        _showing.console.print(f"{mark} {self.name:<9} {counted:>9} {seconds:>7.1f} s", highlight=False)


@contextmanager
def step(name: str) -> Iterator[Reporter]:
    """Report a step while the block runs."""
    reporter, began = Reporter(name), time.monotonic()
    reporter.begin()
    failed = True
    try:
        yield reporter
        failed = False
    finally:
        reporter.end(time.monotonic() - began, failed=failed)


@contextmanager
def terminal() -> Iterator[None]:
    """Show the steps of the block on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    from dspy_toolkit.display.tables import console

    global _showing
    # The stream is looked up now: it is captured while an optimizer runs.
    stream = sys.stderr
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[doing]}"),
        console=console(file=stream),
        redirect_stdout=False,
        redirect_stderr=False,
        transient=True,
    )
    heartbeat = threading.Event()
    with progress:
        _showing = progress
        if not progress.console.is_terminal:
            threading.Thread(target=_plain_lines, args=(progress, heartbeat), daemon=True).start()
        try:
            yield
        finally:
            heartbeat.set()
            _showing = None


PLAIN_SECONDS = 15.0


def _plain_lines(progress: Any, over: threading.Event) -> None:
    """Without a terminal: print the count of each running step every few seconds."""
    while not over.wait(PLAIN_SECONDS):
        for task in progress.tasks:
            if task.total:
                progress.console.print(
                    f"  {task.description} {task.completed:.0f}/{task.total:.0f} {task.fields['doing']}",
                    highlight=False,
                )
