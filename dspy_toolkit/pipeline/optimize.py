"""Optimizing without an orchestrator: one call, from Python, on any `dspy.Module`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.errors import DatasetError, ProjectError
from dspy_toolkit.lm.connection import Connection, connect
from dspy_toolkit.metrics import Metric, resolve_metric
from dspy_toolkit.optimizers import Choice, Compiled, Profile, find_budget
from dspy_toolkit.optimizers.plan.selection import check_optimizer
from dspy_toolkit.optimizers.states import fill, signature_of
from dspy_toolkit.pipeline.compare import compare
from dspy_toolkit.pipeline.compile import compile  # noqa: A004
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.probe import probe
from dspy_toolkit.pipeline.record import report_of
from dspy_toolkit.pipeline.select import select
from dspy_toolkit.pipeline.source import find_start
from dspy_toolkit.pipeline.unchanged import program_part
from dspy_toolkit.project import ChampionPart, DataPart, Project, ProjectRef
from dspy_toolkit.registry import Decision
from dspy_toolkit.run import CompareInput, Comparison, CompileInput, ReleasedRun, SearchInput, SelectInput
from dspy_toolkit.settings import Settings, load_settings

if TYPE_CHECKING:
    import dspy
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """What an optimization gave."""

    program: dspy.Module
    """The better program when it passed the gate, else the one that came in."""
    improved: bool
    """Whether it passed: its gain on the sealed rows is above zero beyond doubt."""
    reason: str
    """One sentence."""
    profile: Profile
    choice: Choice
    compiled: Compiled
    comparison: Comparison
    _page: Callable[[], str] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.reason

    def report(self) -> str:
        """A page about it, as one HTML text: what changed, the rows won and lost, what it cost.

            Path("report.html").write_text(result.report(), encoding="utf-8")

        It holds rows of the data in clear.
        """
        return self._page()


def optimize(
    program: dspy.Module,
    rows: Iterable[Mapping[str, Any] | dspy.Example] | pd.DataFrame | str | Path,
    metric: str | Mapping[str, Any] | Metric = "exact_match",
    optimizer: str = "auto",
    budget: str = "light",
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    start: dspy.Module | str | None = None,
    settings: Settings | None = None,
    connection: Connection | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Result:
    """Find a better prompt for `program`, and prove it on rows that nothing before has seen.

    The rows are split into train, val and sealed. Nothing is promoted or recorded: keep `result.program` as DSPy keeps
    programs (`result.program.save("better.json")`).

    Args:
        program: any module; it is not changed.
        rows: dictionaries or examples, a table, or a .csv, .jsonl or .parquet file.
        metric: a built-in such as `exact_match`, `module:function`, a table with a name and options, or a function of
            (example, prediction) that gives a score in [0, 1].
        optimizer: `auto`, `race`, `labelled`, `bootstrap`, `random`, `mipro`, `gepa` or `simba`.
        budget: `light` (300 LM calls), `medium` (1,200), `heavy` (5,000), a number of calls (`800`), a time (`15m`) or
            dollars (`2.50usd`); the sealed test apart.
        inputs, outputs: columns; by default the program's fields of these names that the rows have.
        start: a program whose instructions and demonstrations are tried first, and searched on from where they are
            better: a module, `project@champion`, `project@3` or a folder. Which rows a module was tuned on is not known:
            let none of them be among `rows`.
        settings: by default `dspy-toolkit.toml` and the environment.
        connection: the language models, in place of those of the settings.
        progress: told (done, all, what is going on).

    Raises:
        DatasetError, ProjectError, MetricError, OptimizerError, ModelError: with what to do about it.
    """
    # Before anything is spent.
    check_optimizer(optimizer)
    find_budget(budget)
    _check_program(program)
    settings = settings or load_settings()
    records, source = _records(rows)
    spec = _spec(program, records, source, inputs, outputs)
    project = Project(
        name="direct",
        summary="A program optimized from Python",
        program=program.deepcopy,
        metric=resolve_metric(metric, Path.cwd()),
        dataset=spec,
    )
    context = Context(project, settings, connect if connection is None else lambda _: connection, records)
    part = find_start(start, project, settings, context.store) if start is not None else None
    program_now = program_part(context)
    # Rows in memory have no fingerprint, and nothing is live.
    data = DataPart(project=project.name, location="", fingerprint="")
    ref = ProjectRef(
        name=project.name,
        location="",
        data=data,
        program=program_now,
        champion=ChampionPart(),
        start=part,
        false_promotion_rate=settings.optimize.false_promotion_rate,
    )
    dataset = prepare(context, data)
    search = SearchInput(program=program_now, train=dataset.train, val=dataset.val, start=part)
    profile = probe(context, search)
    choice = select(context, SelectInput(**dict(search), profile=profile, optimizer=optimizer, budget=budget))
    compiled = compile(context, CompileInput(**dict(search), choice=choice, profile=profile), progress)
    comparison = compare(context, CompareInput.of(ref, dataset, choice, compiled), progress)
    improved = comparison.outcome == "promoted"
    reason = _reason(choice, compiled, comparison)
    run = ReleasedRun(
        name=f"optimize {type(program).__name__}",
        ref=ref,
        dataset=dataset,
        profile=profile,
        choice=choice,
        compiled=compiled,
        comparison=comparison,
        decision=Decision(outcome=comparison.outcome, reason=reason, version=None, previous=None),
    )
    better = fill(project.build(), context.store.read_json(compiled.program)) if improved else program.deepcopy()
    return Result(better, improved, reason, profile, choice, compiled, comparison, partial(report_of, context, run))


def _check_program(program: Any) -> None:
    import dspy

    if not isinstance(program, dspy.Module):
        raise ProjectError(f"The program is {program!r}. Give a dspy.Module, such as dspy.Predict(…).")
    if not program.predictors():
        raise ProjectError(
            f"The program {type(program).__name__} has no predictor that can be optimized (DSPy freezes compiled "
            "submodules). Put a dspy.Predict into it."
        )


def _reason(choice: Choice, compiled: Compiled, comparison: Comparison) -> str:
    if choice.optimizer == "none":
        return choice.reason
    return comparison.reason if compiled.changed else compiled.summary


def _records(rows: Any) -> tuple[list[dict[str, Any]], str]:
    """The rows as dictionaries, and what to call them in messages."""
    if isinstance(rows, str | Path):
        from dspy_toolkit.datasets import read_rows

        return read_rows(Path(rows)).to_dict("records"), str(rows)
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return rows.to_dict("records"), "rows"
    try:
        return [dict(row.items()) for row in rows], "rows"
    except (AttributeError, TypeError) as error:
        raise DatasetError(
            f"rows cannot be read: {error}. Give dictionaries, dspy.Examples, a DataFrame, or a file's path."
        ) from error


def _spec(
    program: dspy.Module,
    records: list[dict[str, Any]],
    source: str,
    inputs: Iterable[str] | None,
    outputs: Iterable[str] | None,
) -> DatasetSpec:
    """Which columns are inputs and outputs: as given, else those of the program's fields that the rows have."""
    if not records:
        raise DatasetError(f"{source} has no rows. Give at least a few dozen.")
    columns = {str(name): None for record in records for name in record}
    taken: dict[str, None] = {}
    given: dict[str, None] = {}
    for signature in map(signature_of, program.predictors()):
        taken |= {name: None for name in signature.input_fields if name in columns}
        given |= {name: None for name in signature.output_fields if name in columns}
    # A field that one predictor gives and the next one takes is an answer, not an input.
    into = _names(inputs) if inputs is not None else tuple(name for name in taken if name not in given)
    out = _names(outputs) if outputs is not None else tuple(given)
    if not into:
        raise ProjectError(
            f"None of the rows' columns ({', '.join(columns)}) is an input of the program. "
            "Rename the columns, or pass inputs=[…]."
        )
    try:
        return DatasetSpec(source=source, inputs=into, outputs=out)
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ProjectError(f"{why}. Correct inputs={list(into)} and outputs={list(out)}.") from None


def _names(given: Iterable[str]) -> tuple[str, ...]:
    # A text is an iterable too, of letters.
    return (given,) if isinstance(given, str) else tuple(given)
