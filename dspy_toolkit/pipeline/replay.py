"""One row again, step by step: what was asked, what the model said, what was read out of it, what the metric says of that.

A row is named by its number in the file, as a person sees it, or by the beginning of its hash, as the tables of a run have it. A
sealed row is not shown, unless the settings show sealed rows: what is changed after reading it has been tuned on it.

Not covered: replies of a cache, which stand for the model here as they do in a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dspy.utils.callback import BaseCallback
from pydantic_core import to_jsonable_python

from dspy_toolkit.datasets import examples
from dspy_toolkit.datasets.spec import ROW
from dspy_toolkit.errors import MetricError
from dspy_toolkit.lm.connection import Connection, connect
from dspy_toolkit.metrics import score
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import look_at_rows
from dspy_toolkit.pipeline.rows import find_row
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.registry.programs import load_program
from dspy_toolkit.store import Frozen
from dspy_toolkit.user_code import describe_error

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.settings import Settings


class Call(Frozen):
    """One call to the model."""

    messages: tuple[dict[str, Any], ...]
    replies: tuple[str, ...]
    """The raw texts; empty where the call failed."""
    fault: str = ""
    """Why it failed."""
    seconds: float


class Replay(Frozen):
    """One row, run again."""

    program: str
    row: str
    """The row's hash."""
    number: int
    """In the file."""
    split: str
    """train, val or sealed."""
    inputs: dict[str, Any]
    expected: dict[str, Any]
    calls: tuple[Call, ...]
    answer: dict[str, Any] | None
    """None where the program failed."""
    fault: str = ""
    """Why it failed, such as a reply that could not be read."""
    score: float | None
    """In [0, 1]; None where there was nothing to score, or the metric failed."""
    feedback: str = ""
    """The metric's; or why it failed."""


def replay(
    settings: Settings,
    reference: str,
    row: str,
    location: str = "",
    connecting: Callable[[Settings], Connection] = connect,
) -> Replay:
    """Run a program on one row of its project's file, and keep everything that happens.

    Args:
        settings: the home and the models.
        reference: a program.
        row: a number in the file, or at least six hex digits of a row's hash.
        location: where the project is, where its name is not enough.
        connecting: gives the language models of settings.

    Raises:
        DatasetError: there is no such row, it is left out of the splits, or it is sealed.
        RegistryError, ProjectError: the program cannot be loaded.
        ToolkitError: the model failed.
    """
    import dspy

    loaded = load_program(settings, reference, location)
    project = loaded.project
    context = Context(project, settings.for_project(project.name), connecting)
    rows = look_at_rows(context)
    at = find_row(context, rows, row)
    (example,) = examples(rows.table.iloc[[at]], project.dataset, fields_of(project.build()))
    heard = _Heard()
    answer: dict[str, Any] | None = None
    prediction: dspy.Prediction | None = None
    fault = ""
    with context.connection.context(), dspy.context(trace=[], callbacks=[heard]):
        try:
            prediction = loaded.program(**example.inputs())
            answer = to_jsonable_python(dict(prediction.items()), fallback=str)
        except Exception as error:  # isolation boundary: one run of a program, as in an evaluation
            if not heard.calls:
                raise
            fault = describe_error(error)
    value, feedback = None, ""
    if prediction is not None:
        with context.connection.context():  # a judge may be asked
            try:
                found = score(project.metric, example, prediction, row=str(rows.numbers[at]))
                value, feedback = found.value, found.feedback or ""
            except MetricError as error:
                feedback = str(error)
    return Replay(
        program=reference,
        row=str(rows.table[ROW].iloc[at]),
        number=rows.numbers[at],
        split=rows.splits[at],
        inputs=to_jsonable_python(dict(example.inputs().items()), fallback=str),
        expected=to_jsonable_python(dict(example.labels().items()), fallback=str),
        calls=tuple(heard.calls),
        answer=answer,
        fault=fault,
        score=value if prediction is not None else 0.0,
        feedback=feedback,
    )


class _Heard(BaseCallback):
    """Listens to the calls of one run."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._open: dict[str, tuple[float, tuple[dict[str, Any], ...]]] = {}

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        messages = inputs.get("messages") or [{"role": "user", "content": inputs.get("prompt") or ""}]
        self._open[call_id] = time.monotonic(), tuple(to_jsonable_python(messages, fallback=str))

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        began, messages = self._open.pop(call_id, (time.monotonic(), ()))
        texts = tuple(_text(each) for each in outputs or ()) if exception is None else ()
        fault = describe_error(exception) if exception is not None else ""
        self.calls.append(Call(messages=messages, replies=texts, fault=fault, seconds=time.monotonic() - began))


def _text(output: Any) -> str:
    return str(output.get("text", output)) if isinstance(output, dict) else str(output)
