"""A language model as a judge: it grades an answer by a rubric, and its reason is the feedback.

Covered: a grade on a short scale, as a typed output, which the engine's grammar enforces; the reason comes before the
grade, so that the grade can follow from it; the expected outputs are shown where the example has them. A judge asks the
model that the rubric names, else that of the role `[judge]`, by default the task's; on the meter of the run, so that
its calls are cached and charged to the budget. The program's own sampling is not the judge's: an optimizer may draw
samples, and the judge is asked as `[judge]` says, by default greedily. With `repeats` it is asked several times, with a
sample each, and the mean or the majority of the grades counts.

A judgement that cannot be parsed is a MetricError of that row; with repeats, more than half of them are. An error of
the model is raised unchanged.

Not covered: comparing two answers with each other (`pairwise`), and whether a judge agrees with people
(`dspy_toolkit.evaluation.agreement`); a model that is too small grades at random (see docs/metrics.md).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from dspy_toolkit.errors import MetricError, ProjectError
from dspy_toolkit.metrics.asking import SEEN, Asked, ask, graded, lines, model_to_ask
from dspy_toolkit.metrics.scores import Score

if TYPE_CHECKING:
    import dspy

REASON = 300
"""Characters of a reason, under the engine's grammar."""
MOST_REPEATS = 25
Reduction = Literal["mean", "majority"]
"""What several grades of one answer come to; of equally frequent ones the majority is the lowest."""

INSTRUCTIONS = """\
Grade an answer by the rubric. First give a short reason: what is wrong with the answer, and what would be right. Then
give \\ the grade, from 1 (the rubric is not met at all) to {scale} (it is met in full).

Rubric:
{rubric}"""


class _Judgement(NamedTuple):
    grade: int
    reason: str


@dataclass(frozen=True)
class Judge:
    """A metric that asks a language model; `judge` makes it."""

    rubric: str
    model: str | None = None
    scale: int = 5
    fields: tuple[str, ...] = ()
    repeats: int = 1
    reduce: Reduction = "mean"

    @property
    def metric_name(self) -> str:
        """Such as `judge('Is it polite?', model='openai/gpt-4o')`."""
        options = [short_rubric(self.rubric)]
        options += [f"model={self.model!r}"] if self.model else []
        options += [f"scale={self.scale}"] if self.scale != 5 else []
        options += [f"fields={self.fields}"] if self.fields else []
        options += [f"repeats={self.repeats}"] if self.repeats != 1 else []
        options += [f"reduce={self.reduce!r}"] if self.reduce != "mean" else []
        return f"judge({', '.join(options)})"

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> Score:
        """The grade as a score: 1 is 0, the scale's end is 1.

        With repeats the feedback is that of the judgement nearest to the result, and the score's `judge_spread` is the
        standard deviation of the single scores.

        Raises:
            MetricError: there is no language model to ask, or its judgement cannot be read.
            ToolkitError, LMError: the model failed, or the budget is spent.
        """
        asked = model_to_ask(self.model)
        values = {
            "task": lines(dict(example.inputs().items())),
            "answer": graded(dict(prediction.items()), self.fields),
        }
        if labels := graded(dict(example.labels().items()), self.fields):
            values["expected"] = labels
        if self.repeats == 1:
            grade, reason = self._read(asked, values)
            return Score(value=self._score(grade), feedback=f"Grade {grade} of {self.scale}. {reason}".strip())
        return self._repeated(asked, values)

    def _repeated(self, asked: Asked, values: Mapping[str, str]) -> Score:
        found: list[_Judgement] = []
        unread: list[MetricError] = []
        for number in range(1, self.repeats + 1):
            try:
                found.append(self._read(asked.sampled(number), values))
            except MetricError as error:
                unread.append(error)
        if len(unread) > len(found):
            raise unread[0]
        grades = [one.grade for one in found]
        result = fmean(grades) if self.reduce == "mean" else _majority(grades)
        nearest = min(found, key=lambda one: abs(one.grade - result))
        said = ", ".join(str(grade) for grade in grades)
        return Score(
            value=self._score(result),
            feedback=f"Grades {said} of {self.scale}. {nearest.reason}".strip(),
            measures={"judge_spread": pstdev([self._score(grade) for grade in grades])},
        )

    def _read(self, asked: Asked, values: Mapping[str, str]) -> _Judgement:
        said, unread = ask(_predictor(self.rubric, self.scale, "expected" in values), asked, values)
        grade: int | None = getattr(said, "grade", None)
        if said is None or grade is None or grade not in range(1, self.scale + 1):
            raise MetricError(
                f"the judgement cannot be read: {unread[:SEEN] or grade!r}. "
                "Name a model that keeps to the format, or shorten the rubric."
            )
        return _Judgement(grade, " ".join(str(said.reason or "").split()))

    def _score(self, grade: float) -> float:
        return (grade - 1) / (self.scale - 1)


def judge(
    rubric: str,
    model: str | None = None,
    *,
    scale: int = 5,
    fields: Iterable[str] = (),
    repeats: int = 1,
    reduce: Reduction = "mean",
) -> Judge:
    """A metric that lets a language model grade each answer.

    Args:
        rubric: what a good answer is, in words; and what each grade means, if that matters.
        model: `mlx/…` or a LiteLLM model; by default the one that the program runs on.
        scale: the highest grade, 2 to 10; the lowest is 1.
        fields: the outputs that the judge is shown; all of them but `reasoning` when empty.
        repeats: how often each answer is graded, 1 to 25. Above 1 each judgement is a sample, at the temperature of
            `[judge]`, or at 1 where that is 0; a row costs as many calls.
        reduce: whether the mean of the grades counts, or the most frequent one.

    Raises:
        ProjectError: the rubric is empty, the model's name has no provider, a number is out of range, or fields is a
        text.
    """
    check_judge("judge", rubric, model, fields)
    if isinstance(scale, bool) or not isinstance(scale, int) or not 2 <= scale <= 10:
        raise ProjectError(f"metric judge: scale is {scale!r}. Give the highest grade, 2 to 10.")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= MOST_REPEATS:
        raise ProjectError(f"metric judge: repeats is {repeats!r}. Give a number, 1 to {MOST_REPEATS}.")
    if reduce not in ("mean", "majority"):
        raise ProjectError(f"metric judge: reduce is {reduce!r}. Give mean or majority.")
    return Judge(rubric.strip(), model, scale, tuple(fields), repeats, reduce)


def check_judge(who: str, rubric: Any, model: Any, fields: Any) -> None:
    """Raise ProjectError for a rubric, a model or fields that no judge can have."""
    if not isinstance(rubric, str) or not rubric.strip():
        raise ProjectError(f"metric {who}: rubric is {rubric!r}. Say in words what a good answer is.")
    if model is not None and (not isinstance(model, str) or "/" not in model.strip("/")):
        raise ProjectError(f"metric {who}: model is {model!r}. Name one as mlx/smollm2-135m or openai/gpt-4o.")
    if isinstance(fields, str):
        raise ProjectError(f'metric {who}: fields is {fields!r}. Write a list: fields = ["…"].')


def short_rubric(rubric: str) -> str:
    """The beginning of a rubric, quoted, for a metric's name."""
    text = " ".join(rubric.split())
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _majority(grades: list[int]) -> int:
    return min(Counter(grades).items(), key=lambda item: (-item[1], item[0]))[0]


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
