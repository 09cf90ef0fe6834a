"""A language model that says which of two answers is better, asked in both orders.

Models prefer a place, mostly the first (Zheng et al. 2023, arXiv:2306.05685). So each pair is shown twice, once in each
order; an answer wins only when it wins both times, and anything else is a tie. How often the order decides is measured
beside the score: `position_bias` is the share of rows whose two judgements disagree, and `first_place` the share of
judgements for the answer shown first, 0.5 where no place is preferred (a tie counts as half).

As a metric, the program's answer is compared with the expected outputs: 1 when it is better, 0.5 for a tie, 0 when it is
worse. `compare` puts the answers of two programs side by side.

Not covered: more than two answers at once, and ratings from many pairs (Elo, Bradley-Terry).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from dspy_toolkit.errors import MetricError
from dspy_toolkit.metrics.asking import SEEN, Asked, ask, graded, lines, model_to_ask
from dspy_toolkit.metrics.judging import REASON, check_judge, short_rubric
from dspy_toolkit.metrics.scores import Score

if TYPE_CHECKING:
    import dspy

Place = Literal["first", "second", "tie"]
FOR_FIRST: dict[Place, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}

INSTRUCTIONS = """\
Say which of two answers is better by the rubric. First give a short reason. Then say first, second, or tie. The order of
the answers is by chance and says nothing about them.

Rubric:
{rubric}"""


@dataclass(frozen=True)
class Preference:
    """Which of two answers is better, `ours` or `theirs`."""

    value: float
    """1 for ours, 0 for theirs, 0.5 for a tie."""
    agreed: bool
    """Whether both orders gave the same verdict; where they did not, it is a tie."""
    first_place: float
    """The share of the two judgements that were for the answer shown first."""
    reason: str
    """The reasons of both judgements."""


@dataclass(frozen=True)
class Pairwise:
    """A metric that compares two answers; `pairwise` makes it."""

    rubric: str
    model: str | None = None
    fields: tuple[str, ...] = ()

    @property
    def metric_name(self) -> str:
        """Such as `pairwise('Which is shorter?')`."""
        options = [short_rubric(self.rubric)]
        options += [f"model={self.model!r}"] if self.model else []
        options += [f"fields={self.fields}"] if self.fields else []
        return f"pairwise({', '.join(options)})"

    def __call__(self, example: dspy.Example, prediction: dspy.Prediction) -> Score:
        """How the answer compares with the expected outputs of `example`.

        Raises:
            MetricError: the example has no outputs, there is no language model, or a judgement cannot be read.
            ToolkitError, LMError: the model failed, or the budget is spent.
        """
        if not (labels := dict(example.labels().items())):
            raise MetricError("the example has no output to compare with. Give the dataset outputs, or use judge.")
        found = self.compare(example, prediction, labels)
        said = {1.0: "Better than", 0.5: "As good as", 0.0: "Worse than"}[found.value]
        doubt = "" if found.agreed else " The verdict changed with the order of the two."
        return Score(
            value=found.value,
            feedback=f"{said} the expected answer.{doubt} {found.reason}".strip(),
            measures={"position_bias": float(not found.agreed), "first_place": found.first_place},
        )

    def compare(self, example: dspy.Example, ours: Any, theirs: Any) -> Preference:
        """Ask about two answers to the inputs of `example`, in both orders.

        Args:
            ours: a prediction, or a mapping of outputs.
            theirs: another one.

        Raises:
            MetricError, ToolkitError, LMError: as a call.
        """
        asked, task = model_to_ask(self.model), lines(dict(example.inputs().items()))
        one, two = (graded(dict(side.items()), self.fields) for side in (ours, theirs))
        (before, why), (after, why_too) = self._ask(asked, task, one, two), self._ask(asked, task, two, one)
        forward, backward = FOR_FIRST[before], 1 - FOR_FIRST[after]
        return Preference(
            value=forward if forward == backward else 0.5,
            agreed=forward == backward,
            first_place=(FOR_FIRST[before] + FOR_FIRST[after]) / 2,
            reason=f"{why} {why_too}".strip(),
        )

    def _ask(self, asked: Asked, task: str, first: str, second: str) -> tuple[Place, str]:
        said, unread = ask(_predictor(self.rubric), asked, {"task": task, "first": first, "second": second})
        better = getattr(said, "better", None)
        if better not in FOR_FIRST:
            raise MetricError(
                f"the judgement cannot be read: {unread[:SEEN] or better!r}. "
                "Name a model that keeps to the format, or shorten the rubric."
            )
        return cast("Place", better), " ".join(str(said.reason or "").split())


def pairwise(rubric: str, model: str | None = None, *, fields: Iterable[str] = ()) -> Pairwise:
    """A metric that lets a language model say whether an answer is better than the expected one; it costs two calls.

    Args:
        rubric: what makes one answer better than another, in words.
        model: `mlx/…` or a LiteLLM model; by default that of `[judge]`.
        fields: the outputs that the judge is shown; all of them but `reasoning` when empty.

    Raises:
        ProjectError: the rubric is empty, the model's name has no provider, or fields is a text.
    """
    check_judge("pairwise", rubric, model, fields)
    return Pairwise(rubric.strip(), model, tuple(fields))


# Made once, as in `judging`: DSPy draws a random number for each predictor, which would change what optimizers draw.
@functools.lru_cache(maxsize=32)
def _predictor(rubric: str) -> dspy.Predict:
    import dspy

    fields: dict[str, Any] = {
        "task": (str, dspy.InputField(desc="what was asked")),
        "first": (str, dspy.InputField(desc="an answer")),
        "second": (str, dspy.InputField(desc="another answer")),
        "reason": (str, dspy.OutputField(max_length=REASON)),
        "better": (Literal["first", "second", "tie"], dspy.OutputField()),
    }
    instructions = INSTRUCTIONS.format(rubric=rubric)
    return dspy.Predict(cast("type[dspy.Signature]", dspy.make_signature(fields, instructions)))
