"""Rows as tables: for a terminal, and as Markdown for the documentation.

Scores are in percent, differences in points. A difference of one run stands with its 95 % interval, paired by rows;
one over tasks and seeds with that of `gains`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.optimizers.gains import FAILED, IMPOSSIBLE, cells_with, gains_of, mean_sealed, over_tasks
from benchmarks.optimizers.goals import Goal, goals
from benchmarks.optimizers.rows import BASELINE, CLASSICAL, SYSTEMS, Row, seeds_of, value_of

if TYPE_CHECKING:
    from rich.table import Table

HEADER = (
    "task", "seed", "system", "validation", "sealed", "against the baseline", "LM calls (predicted)", "physical", "s",
)  # fmt: skip
SUMMARY = ("system", "gain over tasks and seeds", "LM calls, of the budget", "searches", "could not run", "failed")
GOALS = ("goal", "", "found")
NOTED = 60
"""Characters of a reason in a table; the JSON has all of it."""


def summary_cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """One line for each system, over all tasks and seeds."""
    for system in SYSTEMS:
        if not (gains := gains_of(rows, system)):
            continue
        gain = over_tasks(gains)
        ran = cells_with(rows, system, "delta")
        shares = [
            spent / budget
            for task, seed in ran
            if (spent := value_of(rows, task, seed, system, "lm_calls")) is not None
            and (budget := value_of(rows, task, seed, system, "budget"))
        ]
        spent = f"{sum(shares) / len(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})" if shares else "–"
        found = f"{_points(gain.mean)} ({_points(gain.low)} to {_points(gain.high)})"
        yield (
            system,
            found,
            spent,
            *(str(len(each)) for each in (ran, cells_with(rows, system, IMPOSSIBLE), cells_with(rows, system, FAILED))),
        )


def task_header(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns of the table of tasks: the systems that were asked."""
    return ("task", "rows", BASELINE, CLASSICAL, *_asked(rows))


def task_cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """One line for each task: sealed scores, the mean over its seeds."""
    for task in dict.fromkeys(row["task"] for row in rows):
        seeds = seeds_of(rows, task)

        def mean(system: str, measure: str = "sealed", task: str = task, seeds: Sequence[int] = seeds) -> float | None:
            known = [v for seed in seeds if (v := value_of(rows, task, seed, system, measure)) is not None]
            return sum(known) / len(known) if known else None

        count = f"{mean(BASELINE, 'sealed_rows') or 0:.0f}"
        fixed = (task, count, _percent(mean(BASELINE)), _percent(mean(CLASSICAL)))
        yield (*fixed, *(_percent(mean_sealed(rows, task, system)) for system in _asked(rows)))


def _asked(rows: Sequence[Row]) -> list[str]:
    return [system for system in SYSTEMS if any(row["system"] == system for row in rows)]


def cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """One line of the main table for each task, seed and system."""
    for task in dict.fromkeys(row["task"] for row in rows):
        for seed in seeds_of(rows, task):
            for system in (BASELINE, CLASSICAL, *SYSTEMS):
                mine = [row for row in rows if (row["task"], row["seed"], row["system"]) == (task, seed, system)]
                if mine:
                    yield (task, str(seed), system, *_numbers(mine, system))


def _numbers(mine: Sequence[Row], system: str) -> tuple[str, ...]:
    def get(measure: str) -> float | None:
        return next((row["value"] for row in mine if row["measure"] == measure), None)

    stopped = next((row for row in mine if row["measure"] in (IMPOSSIBLE, FAILED)), None)
    if stopped is not None:
        return "–", "–", f"{stopped['measure']}: {_short(stopped['note'])}", "–", "–", "–"
    if system == BASELINE:
        shown = f"{_percent(get('sealed'))} ({_percent(get('sealed_low'))} to {_percent(get('sealed_high'))})"
        return "", shown, f"{get('sealed_rows'):.0f} rows", "", "", ""
    if system == CLASSICAL:
        return "", _percent(get("sealed")), mine[0]["note"], "", "", ""
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
    """For a terminal: every run, the tasks, the systems, then the goals."""
    from rich.table import Table

    runs = Table(title="Runs")
    for name in HEADER:
        runs.add_column(name)
    before = None
    for line in cells(rows):
        if before not in (None, line[:2]):
            runs.add_section()
        runs.add_row(*line)
        before = line[:2]
    others = []
    for title, (header, lines) in _summaries(rows).items():
        table = Table(title=title)
        for name in header:
            table.add_column(name)
        for line in lines:
            table.add_row(*line)
        others.append(table)
    return [runs, *others]


def markdown(rows: Sequence[Row]) -> str:
    """The same as Markdown, without the single runs."""
    return "\n\n".join(_table(header, lines) for header, lines in _summaries(rows).values()) + "\n"


def _summaries(rows: Sequence[Row]) -> dict[str, tuple[Sequence[str], Iterable[tuple[str, ...]]]]:
    return {
        "Sealed scores, mean over seeds": (task_header(rows), task_cells(rows)),
        "Optimizers alone, raced and chosen": (SUMMARY, summary_cells(rows)),
        "Goals": (GOALS, goal_cells(goals(rows))),
    }


def _table(header: Sequence[str], lines: Iterable[tuple[str, ...]]) -> str:
    every = [header, tuple("---" for _ in header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in every)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= NOTED else f"{line[:NOTED]}…"
