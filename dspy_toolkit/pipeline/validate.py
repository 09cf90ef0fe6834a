"""Looking a project over before a run: signature, program, metric, dataset; each finding with its fix. No model is asked.

Not covered: whether a model can do the task (`probe`), and a metric that asks a judge.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from dspy_toolkit.datasets import check_rows, examples, read_rows
from dspy_toolkit.datasets.checking import choices_of
from dspy_toolkit.errors import ToolkitError
from dspy_toolkit.gate.intervals import detectable_proportion
from dspy_toolkit.metrics import name_of, score
from dspy_toolkit.optimizers.states import fill, state_of
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import look_at_rows
from dspy_toolkit.project import Project, load_project
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.settings import Settings

FEW_ROWS = 100
DISAGREEING = 0.2
"""The share of rows on which two programs are taken to differ, where the smallest visible gain is said."""

Subject = Literal["project", "program", "signature", "metric", "dataset"]
FIXES: dict[Subject, str] = {
    "project": "Correct it in {location}; `dspy-toolkit projects list` has the projects that are known by name.",
    "program": "Correct the factory, program=: it is called without arguments, makes a new dspy.Module, and asks no model.",
    "metric": "Correct the metric: it gets a row and any prediction that has the row's outputs, and gives 0 to 1, or a Score.",
    "dataset": "Correct the rows; `dspy-toolkit data check {location}` names each that does not fit.",
}
"""What to do where a part of a project raises an error; the error itself says what and where."""


class Finding(Frozen):
    """One line: what was looked at, whether it is right, and what to do where it is not."""

    subject: Subject
    state: Literal["ok", "note", "wrong"]
    """`note`: it works, but could be better."""
    what: str
    fix: str = ""


def validate(settings: Settings, location: str) -> list[Finding]:
    """Look a project over.

    Where one part cannot be used, what depends on it is not looked at; the rest is.

    Args:
        settings: the home, whose earlier rows keep their splits. Nothing is written.
        location: a project's name or file.
    """
    try:
        project = load_project(location, settings)
        list(project.declared_files)
    except ToolkitError as error:
        return [_wrong("project", error, location)]
    found = [Finding(subject="project", state="ok", what=f"{project.name}: {project.summary or 'no summary'}")]
    if not project.summary:
        found.append(
            Finding(subject="project", state="note", what="It has no summary.", fix="Say in one line what it does.")
        )
    program, faults = _tried("program", project.build, location)
    found += faults
    if program is None:
        return found
    found += [*_program(project, program), *_signature(project, program)]
    cases, faults = _tried("dataset", lambda: examples_of(project), location)
    found += faults
    if cases is not None:
        found += _metric(project, cases, location)
        found += _dataset(settings, project, location)
    return found


def examples_of(project: Project, most: int = 50) -> list[dspy.Example]:
    """The first rows of a project's file as DSPy examples, as its signature types them.

    Raises:
        DatasetError: the file cannot be read, or a row does not fit.
    """
    types = fields_of(project.build())
    frame, _ = check_rows(read_rows(project.data_path), project.dataset, types, drop_bad_rows=False)
    return examples(frame.head(most), project.dataset, types)


def _tried(subject: Subject, make: Callable[[], Any], location: str) -> tuple[Any, list[Finding]]:
    try:
        return make(), []
    except ToolkitError as error:
        return None, [_wrong(subject, error, location)]


def _wrong(subject: Subject, error: ToolkitError, location: str) -> Finding:
    return Finding(subject=subject, state="wrong", what=str(error), fix=FIXES[subject].format(location=location))


def _program(project: Project, program: dspy.Module) -> Iterator[Finding]:
    names = [name for name, _ in program.named_predictors()]
    yield Finding(subject="program", state="ok", what=f"{type(program).__name__}, predictors: {', '.join(names)}")
    if project.build() is program:
        yield Finding(
            subject="program",
            state="wrong",
            what="The factory gives the same program each time.",
            fix="Make a new one in it: program = lambda: MyProgram().",
        )
    if state_of(fill(project.build(), state_of(program))) != state_of(program):
        yield Finding(
            subject="program",
            state="wrong",
            what="A program that its own state is loaded into is another one.",
            fix="Keep nothing but predictors on self, and make all of them in __init__.",
        )


def _signature(project: Project, program: dspy.Module) -> Iterator[Finding]:
    fields = fields_of(program)
    outputs = {name for predictor in program.predictors() for name in _signature_of(predictor).output_fields}
    known = {name for predictor in program.predictors() for name in _signature_of(predictor).fields}
    said = ", ".join(f"{name}: {_written(kind)}" for name, kind in fields.items())
    yield Finding(subject="signature", state="ok", what=said)
    for name in project.dataset.outputs:
        if name not in known:
            yield Finding(
                subject="signature",
                state="note",
                what=f"The dataset's output {name} is no field of the program: its values are not checked against a type.",
                fix="Call the column and the field the same, unless only the metric reads it.",
            )
        elif fields[name] is str and name in outputs and (few := _few_values(project, name)):
            yield Finding(
                subject="signature",
                state="note",
                what=f"{name} is a text, and its column has {len(few)} values alone: {', '.join(few)}.",
                fix=f"Write {name}: Literal[{', '.join(map(repr, few))}]: then no other reply is possible.",
            )
    instructions = [str(_signature_of(predictor).instructions) for predictor in program.predictors()]
    if any(text.startswith("Given the fields") for text in instructions):
        yield Finding(
            subject="signature",
            state="note",
            what="A predictor has no instructions of its own.",
            fix="Say in a sentence or two what to do: optimizers start from it.",
        )


def _few_values(project: Project, name: str) -> list[str]:
    try:
        column = read_rows(project.data_path)[name]
    except (ToolkitError, KeyError):
        return []  # said where the dataset is looked at
    values = sorted({str(value) for value in column})
    return values if 2 <= len(values) <= 8 and len(column) >= 5 * len(values) else []


def _metric(project: Project, cases: list[dspy.Example], location: str) -> Iterator[Finding]:
    import dspy

    name, outputs = name_of(project.metric), project.dataset.outputs
    if not outputs:
        yield Finding(subject="metric", state="ok", what=f"{name}; the rows hold no answers to compare with")
        return
    if "judge" in name or "pairwise" in name:
        yield Finding(
            subject="metric",
            state="note",
            what=f"{name} asks a model, and was not tried.",
            fix="See `dspy-toolkit judge agreement`.",
        )
        return
    try:
        right = [
            score(project.metric, case, dspy.Prediction(**{key: case[key] for key in outputs})).value for case in cases
        ]
        swapped = [
            score(project.metric, case, dspy.Prediction(**{key: other[key] for key in outputs})).value
            for case, other in zip(cases, cases[1:] + cases[:1], strict=True)
            if any(case[key] != other[key] for key in outputs)
        ]
    except ToolkitError as error:
        yield _wrong("metric", error, location)
        return
    low = min(right)
    if low < 1:
        yield Finding(
            subject="metric",
            state="wrong" if max(right) < 1 else "note",
            what=f"{name} gives a row's own answer {low:.3f}, not 1.",
            fix="Correct the metric, or the row: no program can score more than that.",
        )
    if swapped and min(swapped) >= 1:
        yield Finding(
            subject="metric",
            state="wrong",
            what=f"{name} gives the answers of other rows 1 as well.",
            fix="Correct it: with it every program is as good as any other.",
        )
    if low >= 1 and not (swapped and min(swapped) >= 1):
        mean = f", other rows' answers {sum(swapped) / len(swapped):.2f}" if swapped else ""
        yield Finding(subject="metric", state="ok", what=f"{name}: a row's own answer scores 1{mean}")


def _dataset(settings: Settings, project: Project, location: str) -> Iterator[Finding]:
    context = Context(project, settings.for_project(project.name))
    found, faults = _tried("dataset", lambda: look_at_rows(context), location)
    yield from faults
    if found is None:
        return
    sizes = found.report.splits
    rows, sealed = sum(sizes.values()), sizes["sealed"]
    said = ", ".join(f"{name} {size}" for name, size in sizes.items())
    yield Finding(subject="dataset", state="ok", what=f"{rows:,} rows: {said}")
    gain = detectable_proportion(DISAGREEING, sealed, 0.025)
    yield Finding(
        subject="dataset",
        state="note" if rows < FEW_ROWS else "ok",
        what=f"{sealed} sealed rows show a gain of {100 * min(gain, 1.0):.0f} points four times in five, at the first look, "
        f"where two programs differ on {DISAGREEING:.0%} of them.",
        fix="Label more rows." if rows < FEW_ROWS else "",
    )
    if found.report.near_duplicates:
        yield Finding(
            subject="dataset",
            state="note",
            what=f"{found.report.near_duplicates} rows are near-duplicates of others, and share their split.",
            fix=f"`dspy-toolkit data check {location}` names them: remove copies of one row, and keep real ones.",
        )
    types: dict[str, Any] = fields_of(project.build())
    for name in project.dataset.outputs:
        labels = [str(choice) for choice in choices_of(types.get(name)) or ()]
        seen = set(found.table[name].astype(str))
        if missing := [label for label in labels if label not in seen]:
            yield Finding(
                subject="dataset",
                state="note",
                what=f"No row has the label{'s' * (len(missing) > 1)} {', '.join(missing)} of {name}.",
                fix="Add such rows, or take the label out of the signature.",
            )


def _signature_of(predictor: Any) -> Any:
    return predictor.signature


def _written(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def worst(found: list[Finding]) -> str:
    """The worst state among findings."""
    order = ("ok", "note", "wrong")
    return max((finding.state for finding in found), key=order.index, default="ok")


def by_subject(found: list[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    """Findings by what they are about, in their order."""
    for subject, group in itertools.groupby(found, key=lambda finding: finding.subject):
        yield subject, list(group)
