"""The tables at the end of a flow, and the commands that come next."""

from __future__ import annotations

import shlex
from statistics import median
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspy_toolkit.display import tables
from dspy_toolkit.printable import without_password

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dspy_toolkit.datasets import DatasetReport
    from dspy_toolkit.evaluation import Report
    from dspy_toolkit.optimizers import Choice, Compiled
    from dspy_toolkit.pipeline.context import Context
    from dspy_toolkit.run import ReleasedRun
    from dspy_toolkit.tracking.machine import Measurement, Regression


DIFFERING = 0.2
"""The share of rows on which two programs are taken to differ, for what a sealed test can show."""
REASON = 66
"""Characters of a reason in a table."""


def print_summary(
    context: Context, run: ReleasedRun, console: Console | None = None, *, report: Path | None = None
) -> None:
    """Print the result of a run on stdout.

    Args:
        console: another place to print to.
        report: the run's page, which is then the first command to run next.
    """
    console = console or tables.console()
    comparison, compiled, decision = run.comparison, run.compiled, run.decision
    test = comparison.sealed
    title = f"{run.ref.name} · {compiled.optimizer} · {run.ref.program.model}"
    table = _table(title, "", "val", "sealed (95 %)", "LM calls", "tokens", "seconds")
    sealed = (test.candidate, test.champion) if test else (None, None)
    table.add_row("baseline", _percent(compiled.val_baseline if compiled.trials else None), *[""] * 4)
    _add(table, f"champion {run.ref.champion.version}", comparison.champion_val, sealed[1])
    _add(table, "candidate", comparison.candidate_val, sealed[0], compiled.val_mean if compiled.trials else None)
    for name, mean in comparison.reference_rules.items():
        table.add_row(name, "", _percent(mean), "", "", "")
    table.add_section()
    cost = (
        f"{compiled.usage.lm_calls:,} of {run.choice.lm_calls:,}",
        f"{compiled.usage.prompt_tokens:,}",
        f"{compiled.seconds:,.0f}",
    )
    table.add_row("compiling", "", "", *cost)
    console.print(table)
    if compiled.generators:
        print_generators(compiled, console)
    if test is not None:
        console.print(
            f"delta {100 * test.delta:+.1f} points on {test.n} sealed rows, "
            f"{100 * test.level:.1f} % interval {100 * test.low:+.1f} to {100 * test.high:+.1f}; "
            f"opening {test.looks} of these rows, {test.alpha_left:.0%} of the error rate left",
            highlight=False,
        )
    _print_classes(context, run, console)
    colour = {"promoted": "green", "refused": "yellow", "unchanged": "cyan"}[decision.outcome]
    console.print(f"[bold {colour}]{decision.outcome}[/]: {escape(decision.reason)}", highlight=False)
    if not compiled.changed and compiled.trials:
        console.print(escape(compiled.summary), highlight=False)
    if decision.version is not None:
        console.print(f"version {decision.version} is {run.ref.name}@champion", highlight=False)
    console.print("\nNext:", highlight=False)
    for command in [*([tables.opening(report)] if report else []), *_next(context, run)]:
        # Not wrapped: a command that is broken over two lines cannot be copied.
        console.print(f"  {escape(command)}", highlight=False, soft_wrap=True)


def _print_classes(context: Context, run: ReleasedRun, console: Console) -> None:
    """A line for each output that is a choice: macro-F1 before and after, on the sealed rows where they were opened."""
    from dspy_toolkit.errors import ObjectMissing
    from dspy_toolkit.evaluation import class_reports
    from dspy_toolkit.project.signatures import fields_of

    comparison = run.comparison
    test = comparison.sealed
    pair = (test.champion, test.candidate) if test else (comparison.champion_val, comparison.candidate_val)
    try:
        tables = [context.store.read_frame(report.rows) for report in pair if report is not None]
    except ObjectMissing:  # the run's page says so
        return
    outputs, types = context.project.dataset.outputs, fields_of(context.project.build())
    for before, after in zip(*(class_reports(table, outputs, types) for table in tables), strict=True):
        now = after.macro_f1
        console.print(
            f"macro-F1 of {escape(after.output)}: champion {before.macro_f1.value:.1%}, candidate {now.value:.1%} "
            f"({100 * now.low:.0f}–{100 * now.high:.0f}), on {after.n} {'sealed' if test else 'validation'} rows",
            highlight=False,
        )


def print_choice(choice: Choice, console: Console | None = None) -> None:
    """Print what was chosen, why, and what each optimizer is expected to cost, before anything is spent.

    Args:
        console: another place to print to.
    """
    console = console or tables.console()
    title = f"{choice.optimizer} · {choice.budget} · {choice.lm_calls:,} LM calls"
    table = _table(title, "alone", "candidates", "tokens", "minutes", "")
    taken = getattr(choice.settings, "generators", ())
    for name in dict.fromkeys((*taken, *choice.alternatives)):
        cost = choice.forecasts.get(name)
        what = choice.alternatives.get(name, "in the pool")
        numbers = (
            ("", "", "")
            if cost is None
            else (f"{cost.candidates:,}", f"{cost.prompt_tokens:,}", _minutes(cost.seconds))
        )
        # The artifact has the whole reason; here it is cut to one line.
        table.add_row(name, *numbers, escape(what if len(what) <= REASON else f"{what[:REASON]}…"))
    console.print(table)
    console.print(escape(choice.reason), highlight=False)


def split_in_words(report: DatasetReport, rate: float) -> str:
    """How the rows are divided, and what the sealed ones can show: one sentence.

    Args:
        rate: the false-promotion rate over the life of the sealed rows.
    """
    from dspy_toolkit.gate.intervals import detectable_proportion
    from dspy_toolkit.gate.ledger import first_alpha
    from dspy_toolkit.pipeline.compare import MOST_ROWS

    learn, choose, prove = (report.splits[split] for split in ("train", "val", "sealed"))
    gain = detectable_proportion(DIFFERING, min(report.groups["sealed"], MOST_ROWS), first_alpha(rate)[0])
    return (
        f"{report.rows:,} rows: {learn:,} to learn from, {choose:,} to choose by, {prove:,} sealed to prove with. Of 20 "
        f"programs whose true gain is {100 * gain:.0f} points, a first opening shows 16 (where {DIFFERING:.0%} of the rows "
        "differ). More to learn from is less to prove with: [dataset.fractions] divides otherwise."
    )


def print_generators(compiled: Compiled, console: Console | None = None) -> None:
    """Print how the candidates of each generator fared.

    Args:
        console: another place to print to.
    """
    console = console or tables.console()
    table = _table("The pool", "", "candidates", "best", "rows", "LM calls", "")
    for each in compiled.generators:
        table.add_row(
            each.name,
            str(each.candidates or ""),
            _percent(each.mean if each.rows else None),
            str(each.rows or ""),
            f"{each.lm_calls:,}" if each.lm_calls else "",
            escape(f"{each.verdict}: {each.reason}"),
        )
    console.print(table)


def print_figures(
    measurement: Measurement,
    history: Mapping[str, Sequence[float]],
    falls: Sequence[Regression],
    console: Console | None = None,
) -> None:
    """Print a machine's figures on stdout, beside the median of its earlier runs.

    Args:
        console: another place to print to.
    """
    console = console or tables.console()
    conditions, fallen = measurement.conditions, {fall.figure.name for fall in falls}
    table = _table(f"{conditions.chip} · {conditions.model}", "", "now", "median before", "runs before")
    for figure in measurement.figures:
        earlier = history.get(figure.name, ())
        now = f"{figure.value:.3g} {figure.unit}"
        usual = f"{median(earlier):.3g} {figure.unit}" if earlier else ""
        table.add_row(
            figure.name, f"[yellow]{now}[/]" if figure.name in fallen else now, usual, str(len(earlier) or "")
        )
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    """A table whose named columns hold numbers; columns without a name hold words, the last of which may wrap."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    wraps = max(place for place, column in enumerate(columns) if not column)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if column else "left", no_wrap=place != wraps)
    return table


def _next(context: Context, run: ReleasedRun) -> list[str]:
    name, first = run.ref.name, context.project.dataset.inputs[0]
    toolkit = tables.program("dspy-toolkit")
    commands = [
        f'{toolkit} predict {name}@champion --input {first}="…"',
        f"{toolkit} programs show {name}@champion",
    ]
    if run.decision.outcome != "promoted" and run.choice.budget != "heavy":
        more = "medium" if run.choice.budget == "light" else "heavy"
        commands.append(
            f"{tables.program('python')} -m flows.optimize_program --project {shlex.quote(run.ref.location)} --budget {more}"
        )
    address = shlex.quote(without_password(context.settings.tracking_uri))
    commands.append(f"MLFLOW_DISABLE_TELEMETRY=true {tables.program('mlflow')} ui --backend-store-uri {address}")
    return commands


def _add(table: Table, name: str, val: Report | None, sealed: Report | None, val_mean: float | None = None) -> None:
    measured = [report for report in (val, sealed) if report is not None]
    table.add_row(
        name,
        _percent(val.mean if val else val_mean),
        _interval(sealed),
        f"{sum(report.usage.lm_calls for report in measured):,}" if measured else "",
        f"{sum(report.usage.prompt_tokens for report in measured):,}" if measured else "",
        f"{sum(report.seconds for report in measured):,.0f}" if measured else "",
    )


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 60:.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _interval(report: Report | None) -> str:
    return "" if report is None else f"{report.mean:.1%} ({100 * report.low:.0f}–{100 * report.high:.0f})"
