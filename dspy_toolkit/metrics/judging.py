"""A language model as a judge: it grades an answer by a rubric, and its reason is the feedback.

Covered: a grade on a short scale, as a typed output, which the engine's grammar enforces; the reason comes before the
grade, so that the grade can follow from it; the expected outputs are shown where the example has them. A judge asks the
model that the rubric names, else that of the role `[judge]`, by default the task's; on the meter of the run, so that
its calls are cached and charged to the budget. The program's own sampling is not the judge's: an optimizer may draw
samples, and the judge is asked as `[judge]` says, by default greedily.

A judgement that cannot be parsed is a MetricError of that row. An error of the model is raised unchanged.

Not covered: comparing two answers with each other, several judgements of one answer, and whether a judge agrees with
people; a model that is too small grades at random (see docs/metrics.md).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from dspy_toolkit.errors import MetricError, ProjectError
from dspy_toolkit.metrics.fields import as_json
from dspy_toolkit.metrics.scores import Score

if TYPE_CHECKING:
    import dspy

REASON = 300
"""Characters of a reason, under the engine's grammar."""
SEEN = 200
"""Characters of an unparsable judgement that an error shows."""
REASONING = "reasoning"
"""The output that a chain of thought adds; the judge sees it only where `fields` names it."""

INSTRUCTIONS = """\
Grade an answer by the rubric. First give a short reason: what is wrong with the answer, and what would be right. Then
give \\ the grade, from 1 (the rubric is not met at all) to {scale} (it is met in full).

Rubric:
{rubric}"""


@dataclass(frozen=True)
class Judge:
    """A metric that asks a language model; `judge` makes it."""

    rubric: str
    model: str | None = None
    scale: int = 5
    fields: tuple[str, ...] = ()

    @property
    def metric_name(self) -> str:
        """Such as `judge('Is it polite?', model='openai/gpt-4o')`."""
        rubric = " ".join(self.rubric.split())
        options = [repr(rubric if len(rubric) <= 40 else f"{rubric[:40]}…")]
        options += [f"model={self.model!r}"] if self.model else []
        options += [f"scale={self.scale}"] if self.scale != 5 else []
        options += [f"fields={self.fields}"] if self.fields else []
        return f"judge({', '.join(options)})"

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> Score:
        """The grade as a score: 1 is 0, the scale's end is 1.

        Raises:
            MetricError: there is no language model to ask, or its judgement cannot be read.
            ToolkitError, LMError: the model failed, or the budget is spent.
        """
        import dspy
        from dspy.utils.exceptions import AdapterParseError

        lm, adapter = self._models()
        asked = {"task": _lines(dict(example.inputs().items())), "answer": _lines(self._seen(prediction))}
        if labels := self._seen(example.labels()):
            asked["expected"] = _lines(labels)
        ask = _predictor(self.rubric, self.scale, bool(labels))
        # A trace of its own: an optimizer must not take the judge's call for a step of the program.
        with dspy.context(lm=lm, adapter=adapter, trace=[]):
            try:
                said, unread = ask(**asked), ""
            except AdapterParseError as error:
                said, unread = None, str(error.lm_response)
        grade: int | None = getattr(said, "grade", None)
        # Raised outside the handler above: inside, an error that a fallback had answered would count as the cause.
        if said is None or grade is None or grade not in range(1, self.scale + 1):
            raise MetricError(
                f"the judgement cannot be read: {unread[:SEEN] or grade!r}. "
                "Name a model that keeps to the format, or shorten the rubric."
            )
        reason = " ".join(str(said.reason or "").split())
        feedback = f"Grade {grade} of {self.scale}. {reason}".strip()
        return Score(value=(grade - 1) / (self.scale - 1), feedback=feedback)

    def _seen(self, outputs: dspy.Example) -> dict[str, Any]:
        """The outputs that are graded."""
        if self.fields:
            return {name: outputs[name] for name in self.fields if name in outputs}
        return {name: value for name, value in outputs.items() if name != REASONING}

    def _models(self) -> tuple[Any, Any]:
        """The LM to ask and its adapter."""
        import dspy

        lm, adapter = dspy.settings.lm, dspy.settings.adapter
        if self.model is None and getattr(lm, "judge", None) is None:
            if lm is None:
                raise MetricError(
                    "the judge has no language model. Call it inside dspy.context(lm=…), or name one: judge(rubric, model=…)."
                )
            return lm.copy(rollout_id=None), adapter
        from dspy_toolkit.lm.adapter import adapter_for
        from dspy_toolkit.lm.connection import judge_of

        lm = judge_of(lm, self.model)
        return lm, adapter or adapter_for(lm)


def judge(rubric: str, model: str | None = None, *, scale: int = 5, fields: Iterable[str] = ()) -> Judge:
    """A metric that lets a language model grade each answer.

    Args:
        rubric: what a good answer is, in words; and what each grade means, if that matters.
        model: `mlx/…` or a LiteLLM model; by default the one that the program runs on.
        scale: the highest grade, 2 to 10; the lowest is 1.
        fields: the outputs that the judge is shown; all of them but `reasoning` when empty.

    Raises:
        ProjectError: the rubric is empty, the model's name has no provider, the scale is out of range, or fields is a
        text.
    """
    if not isinstance(rubric, str) or not rubric.strip():
        raise ProjectError(f"metric judge: rubric is {rubric!r}. Say in words what a good answer is.")
    if model is not None and (not isinstance(model, str) or "/" not in model.strip("/")):
        raise ProjectError(f"metric judge: model is {model!r}. Name one as mlx/smollm2-135m or openai/gpt-4o.")
    if isinstance(scale, bool) or not isinstance(scale, int) or not 2 <= scale <= 10:
        raise ProjectError(f"metric judge: scale is {scale!r}. Give the highest grade, 2 to 10.")
    if isinstance(fields, str):
        raise ProjectError(f'metric judge: fields is {fields!r}. Write a list: fields = ["…"].')
    return Judge(rubric.strip(), model, scale, tuple(fields))


# Made once, not for every row: DSPy draws a random number for each predictor, which would change what optimizers draw.
@functools.lru_cache(maxsize=32)
def _predictor(rubric: str, scale: int, expected: bool) -> dspy.Predict:
    import dspy

    fields: dict[str, Any] = {"task": (str, dspy.InputField(desc="what was asked"))}
    if expected:
        fields["expected"] = (str, dspy.InputField(desc="a right answer"))
    fields["answer"] = (str, dspy.InputField(desc="the answer to grade"))
    fields["reason"] = (str, dspy.OutputField(max_length=REASON))
    fields["grade"] = (Literal[tuple(range(1, scale + 1))], dspy.OutputField())
    # The rubric is in the instructions, before what differs from row to row, so that the engine prefills it once.
    instructions = INSTRUCTIONS.format(rubric=rubric, scale=scale)
    return dspy.Predict(cast("type[dspy.Signature]", dspy.make_signature(fields, instructions)))


def _lines(values: Mapping[str, Any]) -> str:
    """`name: value`, a line each; what is no text as JSON."""
    plain = {name: as_json(value) for name, value in values.items()}
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in plain.items()
    )
