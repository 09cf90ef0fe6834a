"""What an adapter is trained on: the very messages that the program will send, and the replies that they should get.

*Labels.* Where a program has one step and the rows hold all its outputs, each row is a prompt and its right reply.

*Traces.* A row says nothing about the steps in between. So the program runs on training rows, with the teacher's model, and
what each step was asked and answered in a run that the metric accepted is one training row of that step. All steps share one
adapter: their prompts begin with other instructions, so it can tell them apart; each step learns from the others' rows, which a
few hundred rows for each alone would not give; and no adapter is exchanged within a run. A fifth of the accepted rows is kept
back to tell how well.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import dspy

from dspy_toolkit.errors import MetricError, RequestRefused, ToolkitError
from dspy_toolkit.finetuning.values import RowSet, TrainingRow
from dspy_toolkit.lm.adapter import format_adapter
from dspy_toolkit.lm.formats import format_of
from dspy_toolkit.lm.levers import pull
from dspy_toolkit.lm.protocol import Message
from dspy_toolkit.optimizers.generators.callback import cause_of_type
from dspy_toolkit.optimizers.generators.formats import in_format
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.profile import PASS
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.states import signature_of

if TYPE_CHECKING:
    import pandas as pd

    from dspy_toolkit.optimizers.problem import Problem

VAL_ROWS = 96
"""Validation rows that say which step and which settings are best, at most: they are read once in each pass."""
TRACED = 160
"""Training rows that a program of several steps is run on, at most."""
HELD = 5
"""Of so many accepted runs, one is kept back."""


def plain_program(problem: Problem) -> dspy.Module:
    """The baseline as it is trained: in the format with the fewest words, and without demonstrations, which training replaces."""
    program = problem.program
    if all(format_of(predictor) is None for predictor in program.predictors()):
        program = in_format(program, program, "plain", local=True)
    return bare(program)


def bare(program: dspy.Module) -> dspy.Module:
    """A copy with its instructions and formats alone, which is what an adapter is trained under."""
    made = program.deepcopy()
    for predictor in made.predictors():
        predictor.demos = []
        pull(predictor, neighbors=None, labels=None, adapter=None, ensemble=None)
    return made


def row_set(shop: Workshop, program: dspy.Module) -> RowSet | None:
    """What `program` is trained on; None where the metric accepted too few of its runs.

    Raises:
        BudgetExhausted: in the middle of the runs.
        ToolkitError: the model failed.
    """
    problem = shop.problem
    if shop.profile.labelled:
        val = problem.val_sample(min(shop.settings.val_rows, VAL_ROWS))
        rows, val_rows = (labelled_rows(problem, program, frame) for frame in (problem.train, val))
        return RowSet(rows=tuple(rows), val_rows=tuple(val_rows))
    runs = _accepted(shop, program)
    held, kept = runs[::HELD], [run for number, run in enumerate(runs) if number % HELD]
    if not kept:
        return None
    return RowSet(rows=tuple(chain.from_iterable(kept)), val_rows=tuple(chain.from_iterable(held)))


def labelled_rows(problem: Problem, program: dspy.Module, rows: pd.DataFrame) -> list[TrainingRow]:
    """Rows as the model of a program of one step will see them, with the replies that their labels would be."""
    (predictor,) = program.predictors()
    return [_row(predictor, dict(case.inputs()), dict(case.labels())) for case in problem.cases(rows)]


def _row(predictor: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> TrainingRow:
    signature, written = signature_of(predictor), format_adapter(predictor)
    messages = written.format(signature, predictor.demos, dict(inputs))
    reply = written.format_assistant_message_content(signature, dict(outputs)).rstrip("\n")
    return TrainingRow(prompt=tuple(Message(**message) for message in messages), reply=reply)


def _accepted(shop: Workshop, program: dspy.Module) -> list[list[TrainingRow]]:
    """The rows of each run that the metric accepted, in the order of the sample."""
    cases = balanced(shop.train, min(TRACED, len(shop.train)), seed=shop.seed)
    teacher = shop.teacher(program, cases)
    lm = shop.lm.part()
    shop.teacher_lm.meter = lm.meter
    shop.say(f"traces of {len(cases)} training rows")
    places = {id(predictor): number for number, predictor in enumerate(teacher.predictors())}
    students = program.predictors()

    def one(case: dspy.Example) -> list[TrainingRow]:
        with dspy.context(lm=shop.teacher_lm, adapter=shop.adapter, trace=[]):
            try:
                found = teacher(**case.inputs())
                if shop.float_metric(case, found) < PASS:
                    return []
            except Exception as error:  # isolation boundary: one run of a user's program
                fault = cause_of_type(error, ToolkitError)
                if fault is not None and not isinstance(fault, MetricError | RequestRefused):
                    raise fault from error
                return []
            return [
                _row(students[places[id(predictor)]], inputs, _outputs(predictor, outputs))
                for predictor, inputs, outputs in dspy.settings.trace
                if id(predictor) in places
            ]

    with ThreadPoolExecutor(shop.problem.threads, thread_name_prefix="traces") as pool:
        runs = list(pool.map(one, cases))
    if (broken := shop.float_metric.broken()) is not None:
        raise broken
    return [run for run in runs if run]


def _outputs(predictor: Any, outputs: Any) -> dict[str, Any]:
    """The outputs of a call, without what comes beside them."""
    return {name: outputs[name] for name in signature_of(predictor).output_fields}
