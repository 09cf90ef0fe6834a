"""Rows as tables: for a terminal, and as Markdown for the documentation.

Scores are in percent, differences in points. A difference stands with its 95 % interval, paired by rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.optimizers.goals import Goal, goals
from benchmarks.optimizers.rows import BASELINE, SYSTEMS, Row, seeds_of

if TYPE_CHECKING:
    from rich.table import Table

HEADER = (
    "task", "seed", "system", "validation", "sealed", "against the baseline", "LM calls (predicted)", "physical", "s",
)  # fmt: skip
GOALS = ("goal", "", "found")
NOTED = 60
"""Characters of a reason in a table; the JSON has all of it."""


def cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """One line of the main table for each task, seed and system."""
    for task in dict.fromkeys(row["task"] for row in rows):
        for seed in seeds_of(rows, task):
            for system in (BASELINE, *SYSTEMS):
                mine = [row for row in rows if (row["task"], row["seed"], row["system"]) == (task, seed, system)]
                if mine:
                    yield (task, str(seed), system, *_numbers(mine, system))


def _numbers(mine: Sequence[Row], system: str) -> tuple[str, ...]:
    def get(measure: str) -> float | None:
        return next((row["value"] for row in mine if row["measure"] == measure), None)

    stopped = next((row for row in mine if row["measure"] in ("impossible", "failed")), None)
    if stopped is not None:
        return "–", "–", f"{stopped['measure']}: {_short(stopped['note'])}", "–", "–", "–"
    if system == BASELINE:
        shown = f"{_percent(get('sealed'))} ({_percent(get('sealed_low'))} to {_percent(get('sealed_high'))})"
        return "", shown, f"{get('sealed_rows'):.0f} rows", "", "", ""
    unchanged = any(row["measure"] == "sealed" and row["note"] for row in mine)
    against = f"{_points(get('delta'))} ({_points(get('low'))} to {_points(get('high'))})"
    return (
        f"{_percent(get('val_baseline'))} → {_percent(get('val'))} of {get('val_rows'):.0f}",
        _percent(get("sealed")),
        "unchanged" if unchanged else against,
        f"{get('lm_calls'):.0f} ({get('predicted'):.0f})",
        f"{get('physical_calls'):.0f}",
        f"{get('seconds'):.0f}",
    )


def goal_cells(found: Sequence[Goal]) -> Iterator[tuple[str, str, str]]:
    """One line for each goal."""
    words = {True: "met", False: "missed", None: "–"}
    for goal in found:
        yield goal.name, words[goal.met], goal.found


def tables(rows: Sequence[Row]) -> list[Table]:
    """For a terminal: the numbers, then the goals."""
    from rich.table import Table

    main, promised = Table(title="Optimizers alone, raced and chosen"), Table(title="Goals")
    for table, header in ((main, HEADER), (promised, GOALS)):
        for name in header:
            table.add_column(name)
    before = None
    for line in cells(rows):
        if before not in (None, line[:2]):
            main.add_section()
        main.add_row(*line)
        before = line[:2]
    for line in goal_cells(goals(rows)):
        promised.add_row(*line)
    return [main, promised]


def markdown(rows: Sequence[Row]) -> str:
    """The same as Markdown."""
    return f"{_table(HEADER, cells(rows))}\n\n{_table(GOALS, goal_cells(goals(rows)))}\n"


def _table(header: Sequence[str], lines: Iterator[tuple[str, ...]]) -> str:
    every = [header, tuple("---" for _ in header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in every)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= NOTED else f"{line[:NOTED]}…"
