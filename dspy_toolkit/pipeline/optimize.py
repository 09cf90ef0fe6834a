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
from dspy_toolkit.lm.connection import model_names
from dspy_toolkit.metrics import Metric, resolve_metric
from dspy_toolkit.optimizers import Choice, Compiled, Profile, find_budget
from dspy_toolkit.optimizers.plan.selection import check_optimizer
from dspy_toolkit.optimizers.states import signature_of
from dspy_toolkit.pipeline.compare import Challenge
from dspy_toolkit.pipeline.record import Run
from dspy_toolkit.pipeline.workbench import Workbench
from dspy_toolkit.project import ChampionPart, DataPart, ProgramPart, Project, ProjectRef
from dspy_toolkit.registry import Decision
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
    challenge: Challenge
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
        optimizer: `auto`, `race`, `labelled`, `bootstrap`, `random`, `mipro` or `gepa`.
        budget: `light` (300 LM calls), `medium` (1,200), `heavy` (5,000), a number of calls (`800`) or a time (`15m`); the
            sealed test apart.
        inputs, outputs: columns; by default the program's fields of these names that the rows have.
        start: a program whose instructions and demonstrations are tried first, and searched on from where they are
            better: a module, `project@champion`, `project@3` or a folder. Which rows a module was tuned on is not known:
            let none of them be among `rows`.
        settings: by default `dspy-toolkit.toml` and the environment.
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
    bench = Workbench(project, settings, records)
    part = bench.start(start) if start is not None else None
    dataset = bench.prepare()
    profile = bench.probe(dataset.train, dataset.val)
    choice = bench.select(profile, optimizer, budget, bench.experience(profile, optimizer), part)
    compiled = bench.compile(bench.fingerprint(), choice, dataset.train, dataset.val, progress, part, profile=profile)
    challenged = bench.challenge(ChampionPart(), compiled, choice, dataset, progress, part)
    improved = challenged.outcome == "promoted"
    reason = _reason(choice, compiled, challenged)
    run = Run(
        name=f"optimize {type(program).__name__}",
        ref=_reference(bench),
        dataset=dataset,
        profile=profile,
        choice=choice,
        compiled=compiled,
        challenge=challenged,
    )
    decision = Decision(outcome=challenged.outcome, reason=reason, version=None, previous=None)
    return Result(
        program=bench.program(compiled) if improved else program.deepcopy(),
        improved=improved,
        reason=reason,
        profile=profile,
        choice=choice,
        compiled=compiled,
        challenge=challenged,
        _page=partial(bench.report, run, decision),
    )


def _reference(bench: Workbench) -> ProjectRef:
    """What a run says of its project; rows in memory have no fingerprint, and nothing is live."""
    name = bench.project.name
    task, reflection = model_names(bench.settings)
    program = ProgramPart(project=name, location="", model=task, reflection_model=reflection, fingerprint="")
    data = DataPart(project=name, location="", fingerprint="")
    return ProjectRef(name=name, location="", data=data, program=program, champion=ChampionPart())


def _check_program(program: Any) -> None:
    import dspy

    if not isinstance(program, dspy.Module):
        raise ProjectError(f"The program is {program!r}. Give a dspy.Module, such as dspy.Predict(…).")
    if not program.predictors():
        raise ProjectError(
            f"The program {type(program).__name__} has no predictor that can be optimized (DSPy freezes compiled "
            "submodules). Put a dspy.Predict into it."
        )


def _reason(choice: Choice, compiled: Compiled, challenged: Challenge) -> str:
    if choice.optimizer == "none":
        return choice.reason
    return challenged.reason if compiled.changed else compiled.summary


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
