"""A language model takes the best of several answers to one input."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from pydantic_core import to_jsonable_python

from dspy_toolkit.lm.litellm.provider import Calls
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.serving.programs import Live
from dspy_toolkit.serving.schemas import signature_of


class ChooseAnswer(dspy.Signature):
    """Say which of the numbered answers fits the input best."""

    task: str = dspy.InputField(desc="what an answer is asked to be")
    given: str = dspy.InputField(desc="the input")
    answers: str = dspy.InputField(desc="one a line, numbered from 1")
    best: int = dspy.OutputField(desc="the number of the best answer")


async def best_of(live: Live, inputs: dict[str, Any], answers: Sequence[Mapping[str, Any]]) -> tuple[int, Usage]:
    """The place of the best answer, from 0, by the judge that the settings name, and what that took. The first answer where the
    judge names none of them.
    """
    signature = signature_of(live.program.predictors()[-1])
    calls = Calls()
    lm = live.connection.judge.for_one_request(calls=calls)
    with live.connection.context(lm), dspy.context(trace=[]):
        try:
            said = await dspy.Predict(ChooseAnswer).acall(
                task=signature.instructions,
                given=_line(inputs),
                answers="\n".join(f"{number}. {_line(answer)}" for number, answer in enumerate(answers, start=1)),
            )
        except asyncio.CancelledError:
            calls.cancel()
            raise
    return (said.best - 1 if 1 <= said.best <= len(answers) else 0), lm.meter.usage


def _line(value: Any) -> str:
    return json.dumps(to_jsonable_python(value, fallback=str), ensure_ascii=False)
