"""Everything that the page shows of a run, as plain values.

Read from the run's own values, the store's tables, and the state of the program that the candidate was compared with.
What no longer exists (an object that was deleted, a version whose files are gone) is named in `Page.missing` and left
out: a run must not fail because its page is incomplete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import StoreError
from dspy_toolkit.evaluation import JudgeCheck, class_reports
from dspy_toolkit.gate.verdict import percent_of_level
from dspy_toolkit.report.answers import Changes, Classes, changes, classes
from dspy_toolkit.report.calibration import Calibration, calibration
from dspy_toolkit.report.confusion import ClassTables, class_tables
from dspy_toolkit.report.costs import Cost, costs
from dspy_toolkit.report.curves import Curve, Front, baseline, curves, front
from dspy_toolkit.report.judges import judge_facts
from dspy_toolkit.report.prompts import Predictor, predictors
from dspy_toolkit.report.words import Field, count, duration, percent, points, readable, shown

if TYPE_CHECKING:
    from dspy_toolkit.evaluation import Report
    from dspy_toolkit.optimizers.compile import GeneratorResult
    from dspy_toolkit.project import Project
    from dspy_toolkit.run import ReleasedRun, Run, SealedTest
    from dspy_toolkit.store import Store

SPLITS = {"val": "validation", "sealed": "the sealed test"}


@dataclass(frozen=True)
class ScoreLine:
    """What one program, or one reference rule, scores; None where it was not run."""

    name: str
    val: str | None
    sealed: str | None
    faults: str = ""
    """Runs without an answer or without a score, and replies that the length cut."""


@dataclass(frozen=True)
class Page:
    """What the template shows."""

    project: str
    summary: str
    run: str
    when: str
    """When the page was made; empty where it is not given."""
    outcome: str
    verdict: str
    """The statistical verdict in one sentence."""
    remarks: tuple[str, ...]
    """Further sentences: what was promoted, what the search found."""
    facts: tuple[Field, ...]
    scores: tuple[ScoreLine, ...]
    difference: tuple[Field, ...]
    """About the difference on the sealed rows; empty when they were not opened."""
    measures: tuple[Field, ...]
    """What the metric measured beside the score."""
    judge: tuple[Field, ...]
    """What is known of the judge; empty where nothing is."""
    curves: tuple[Curve, ...]
    """Empty when nothing was scored."""
    baseline: float
    """The baseline's score on the rows that the curves show."""
    front: Front | None
    generators: tuple[GeneratorResult, ...]
    """The winner first; empty where nothing was searched."""
    predictors: tuple[Predictor, ...]
    before: str
    """What the candidate was compared with."""
    split: str
    """Where `changes` and `classes` come from, in words; empty when no rows were compared."""
    sealed_shown: bool
    """Whether the page shows rows of the sealed test."""
    sealed_hidden: bool
    """Whether it would, and was asked not to."""
    changes: Changes | None
    classes: tuple[Classes, ...]
    class_tables: tuple[ClassTables, ...]
    """Of the outputs that are a choice."""
    calibration: Calibration | None
    """Of the candidate's confidence; None where its predictions carry none."""
    one_output: bool
    """Whether a row has one label; else a row's score is over all of them."""
    costs: tuple[Cost, ...]
    spent: str
    """LM calls: predicted, allowed and spent."""
    choice: tuple[Field, ...]
    alternatives: tuple[Field, ...]
    profile: tuple[Field, ...]
    missing: tuple[str, ...] = field(default=())


def gather(
    run: ReleasedRun,
    project: Project,
    store: Store,
    before: Mapping[str, Any] | None,
    *,
    judge: JudgeCheck | None = None,
    when: datetime | None = None,
    show_sealed_rows: bool = False,
) -> Page:
    """Collect what the page of a run shows.

    Args:
        run: what the steps found.
        project: its program gives the order and the types of the fields.
        store: holds the compiled program and the per-row tables.
        before: the state of the program that the candidate was compared with; None when it cannot be read.
        judge: what is known of the project's judge.
        when: when the page is made.
        show_sealed_rows: show also inputs and answers of sealed rows; else how many were won and lost.

    Raises:
        ProjectError: the project's program cannot be made.
    """
    from dspy_toolkit.optimizers.states import signature_of
    from dspy_toolkit.project.signatures import fields_of

    program = project.build()
    order = {name: tuple(signature_of(part).fields) for name, part in program.named_predictors()}
    if len(order) == 1:  # a program that is one predictor is saved without its name
        order[""] = next(iter(order.values()))
    missing: list[str] = []
    try:
        sides = predictors(before, store.read_json(run.compiled.program), order)
    except StoreError as error:
        sides = ()
        missing.append(f"The compiled program cannot be read. {error}")
    if before is None:
        missing.append("The program before cannot be read; see the log of the run.")
    pair = _compared(run)
    tables = None
    if pair is not None:
        try:
            tables = store.read_frame(pair[1].rows), store.read_frame(pair[0].rows)
        except StoreError as error:
            missing.append(f"The answers row by row cannot be read. {error}")
    outputs, types = project.dataset.outputs, fields_of(program)
    compiled = run.compiled
    of_sealed = bool(pair and tables and pair[0].split == "sealed")
    differing = changes(*tables) if tables else None
    if differing is not None and of_sealed and not show_sealed_rows:
        differing = differing._replace(won=(), lost=())
    return Page(
        project=project.name,
        summary=readable(project.summary),
        run=readable(run.name),
        when=when.strftime("%Y-%m-%d %H:%M %Z").strip() if when else "",
        outcome=run.decision.outcome,
        verdict=readable(run.decision.reason),
        remarks=tuple(_remarks(run)),
        facts=tuple(_facts(run, project)),
        scores=tuple(_scores(run)),
        difference=tuple(_difference(run.comparison.sealed)),
        measures=tuple(_measures(run)),
        judge=tuple(judge_facts(judge, tables or ())) if judge else (),
        curves=curves(compiled),
        baseline=baseline(compiled),
        front=front(compiled),
        generators=compiled.generators,
        predictors=sides,
        before=_champion(run),
        split=SPLITS.get(pair[0].split, pair[0].split) if pair and tables else "",
        sealed_shown=of_sealed and show_sealed_rows,
        sealed_hidden=of_sealed and not show_sealed_rows,
        changes=differing,
        classes=classes(*tables, outputs, types) if tables else (),
        class_tables=class_tables(*(class_reports(table, outputs, types) for table in tables)) if tables else (),
        calibration=calibration(tables[1], project.abstain_below) if tables else None,
        one_output=len(outputs) == 1,
        costs=costs(run),
        spent=_spent(run),
        choice=tuple(_choice(run)),
        alternatives=tuple(Field(readable(name), readable(why)) for name, why in run.choice.alternatives.items()),
        profile=tuple(_profile(run)),
        missing=tuple(missing),
    )


def _compared(run: Run) -> tuple[Report, Report] | None:
    """(candidate, champion) on the sealed rows where they were opened, else on validation; None when neither ran."""
    comparison = run.comparison
    if (sealed := comparison.sealed) is not None:
        return sealed.candidate, sealed.champion
    if comparison.candidate_val is not None and comparison.champion_val is not None:
        return comparison.candidate_val, comparison.champion_val
    return None


def _champion(run: Run) -> str:
    version = run.ref.champion.version
    return "the baseline" if version is None else f"version {version}, the champion"


def _remarks(run: ReleasedRun) -> Iterator[str]:
    decision = run.decision
    if decision.version is not None:
        yield f"Version {decision.version} is the champion now."
    compiled = run.compiled
    if compiled.optimizer == "none":
        yield readable(run.choice.reason)
    elif not compiled.changed or decision.outcome != "promoted":
        yield readable(compiled.summary)
    if compiled.exhausted:
        yield "The budget ran out before the search was through."


def _facts(run: Run, project: Project) -> Iterator[Field]:
    from dspy_toolkit.metrics import name_of

    yield Field("Optimizer", run.compiled.optimizer)
    yield Field("Model", readable(run.ref.program.model))
    if run.ref.program.reflection_model != run.ref.program.model:
        yield Field("Reflection model", readable(run.ref.program.reflection_model))
    yield Field("Metric", readable(name_of(project.metric)))
    yield Field("Compared with", _champion(run))
    rows = f"{count(run.profile.train)} train, {count(run.profile.val)} validation"
    if (sealed := run.comparison.sealed) is not None:
        rows += f", {count(sealed.n)} sealed"
    yield Field("Rows", rows)
    yield Field("Run", readable(run.name))


def _scores(run: Run) -> Iterator[ScoreLine]:
    compiled, comparison, test = run.compiled, run.comparison, run.comparison.sealed
    if compiled.trials:
        yield ScoreLine("baseline", percent(compiled.val_baseline), None)
    sealed = (test.champion, test.candidate) if test else (None, None)
    if comparison.champion_val is not None or sealed[0] is not None:
        yield _score("champion", comparison.champion_val, sealed[0])
    if comparison.candidate_val is not None or sealed[1] is not None:
        yield _score("candidate", comparison.candidate_val, sealed[1])
    elif compiled.trials:
        yield ScoreLine("best found", percent(compiled.val_mean), None)
    for name, mean in comparison.reference_rules.items():
        yield ScoreLine(f"{readable(name)} (a simple rule)", None, percent(mean))


def _score(name: str, val: Report | None, sealed: Report | None) -> ScoreLine:
    ran = [report for report in (val, sealed) if report is not None]
    counts = {
        "unreadable": sum(report.parse_failures for report in ran),
        "not scored": sum(report.metric_errors for report in ran),
        "could not be run": sum(report.errors for report in ran),
        "cut at the longest reply": sum(report.truncated for report in ran),
    }
    faults = ", ".join(f"{count(number)} {what}" for what, number in counts.items() if number)
    return ScoreLine(name, val and _interval(val), sealed and _interval(sealed), faults)


def _interval(report: Report) -> str:
    repeated = f", {count(report.repeats)} runs each" if report.repeats > 1 else ""
    ends = f"{100 * report.low:.1f} to {100 * report.high:.1f}"
    return f"{percent(report.mean)} ({ends}, {count(report.n)} rows{repeated})"


def _measures(run: Run) -> Iterator[Field]:
    """Champion's and candidate's mean of each, on the rows of `_compared`."""
    if (pair := _compared(run)) is None:
        return
    candidate, champion = (report.measures for report in pair)
    for name in candidate | champion:
        sides = {"champion": champion.get(name), "candidate": candidate.get(name)}
        yield Field(readable(name), ", ".join(f"{who} {v:.3g}" for who, v in sides.items() if v is not None))


def _difference(seen: SealedTest | None) -> Iterator[Field]:
    if seen is None:
        return
    tests = {
        "tango": "Tango's score interval for paired 0/1 scores",
        "bootstrap": "bootstrap over groups of rows",
        "bounded mean": "bounded mean over groups of rows",
    }
    yield Field("Candidate less champion", f"{points(seen.delta)} points")
    yield Field(f"{percent_of_level(seen.level)} interval", f"{points(seen.low)} to {points(seen.high)} points")
    yield Field("Interval by", tests.get(seen.test, seen.test))
    yield Field("Shown four times in five", f"a true gain of {100 * seen.detectable_effect:.1f} points")
    if seen.effective_groups is not None and seen.groups != seen.n:
        yield Field("Groups of rows", f"{count(seen.groups or 0)}, effective number {seen.effective_groups:.1f}")
    if seen.anchor_delta is not None and seen.anchor_low is not None:
        anchored = f"{points(seen.anchor_delta)} points, at least {points(seen.anchor_low)}"
        yield Field("Candidate less the last champion promoted for quality", anchored)
    yield Field("Openings of these rows", count(seen.looks))
    yield Field("Error rate left for later openings", f"{seen.alpha_left:.0%}".replace("%", " %"))
    yield Field("Prompt tokens, candidate over champion", f"{seen.tokens_ratio:.2f}")


def _spent(run: Run) -> str:
    choice, compiled = run.choice, run.compiled
    if choice.optimizer == "none":
        return "Nothing was spent on compiling."
    return (
        f"Compiling spent {count(compiled.usage.lm_calls)} of {count(choice.lm_calls)} logical LM calls "
        f"({choice.budget}); {count(choice.predicted_lm_calls)} were predicted."
    )


def _choice(run: Run) -> Iterator[Field]:
    choice = run.choice
    yield Field("Optimizer", choice.optimizer)
    yield Field("Reason", readable(choice.reason))
    yield Field("Budget", f"{choice.budget}: {count(choice.lm_calls)} LM calls")
    yield Field("Predicted", f"{count(choice.predicted_lm_calls)} LM calls")
    settings = choice.settings.model_dump(exclude={"optimizer"})
    if choice.optimizer != "none":
        yield Field("Settings", "\n".join(f"{readable(name)} = {shown(value)}" for name, value in settings.items()))


def _profile(run: Run) -> Iterator[Field]:
    seen = run.profile
    yield Field("Baseline", f"{percent(seen.baseline)} on {count(seen.probed)} validation rows")
    yield Field("Runs that scored one half or more", percent(seen.pass_rate))
    yield Field("Replies that could not be read", count(seen.parse_failures))
    yield Field("Rows whose metric failed", count(seen.metric_errors))
    yield Field("Scores", "graded" if seen.graded else "0 or 1")
    yield Field("Metric", "says what was wrong" if seen.feedback else "gives no feedback")
    yield Field("Predictors", count(seen.predictors))
    yield Field("LM calls of one run", count(seen.calls_per_run))
    yield Field(
        "Tokens of one run", f"{count(round(seen.prompt_tokens))} prompt, {count(seen.completion_tokens)} reply"
    )
    if seen.seconds_per_call > 0:
        yield Field("Time of one call, many at once", duration(seen.seconds_per_call))
    usable = "can write a usable instruction" if seen.reflector_ok else "cannot write a usable instruction"
    yield Field("Reflection model", f"{usable}: {readable(seen.reflector_note)}")
