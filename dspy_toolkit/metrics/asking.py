"""Which model a judge asks, and how its reply is read; for one answer graded (`judging`) and for two compared (`pairwise`).

The call is charged to the meter of the run, is no step of the program, and is made as `[judge]` says, whatever an
optimizer samples with. To ask again about the same, `sampled` draws another sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dspy_toolkit.errors import MetricError
from dspy_toolkit.metrics.fields import as_json

if TYPE_CHECKING:
    import dspy

SEEN = 200
"""Characters of an unparsable judgement that an error shows."""
REASONING = "reasoning"
"""The output that a chain of thought adds; a judge sees it only where `fields` names it."""
SAMPLING = 1.0
"""The temperature of repeated judgements where `[judge]` is greedy: at 0 all of them would be one."""


class Asked(NamedTuple):
    """A model to ask, and what makes its prompts."""

    lm: Any
    adapter: Any

    def sampled(self, number: int) -> Asked:
        """The same model for the `number`-th sample, 1 or more."""
        temperature = self.lm.kwargs.get("temperature") or SAMPLING
        return Asked(self.lm.copy(rollout_id=number, temperature=temperature), self.adapter)


def model_to_ask(model: str | None) -> Asked:
    """The model that a metric names, else that of the role `[judge]`, else the one that the program runs on.

    Raises:
        MetricError: there is none.
        ToolkitError: the model cannot be had.
    """
    import dspy

    lm, adapter = dspy.settings.lm, dspy.settings.adapter
    if model is None and getattr(lm, "judge", None) is None:
        if lm is None:
            raise MetricError(
                "the judge has no language model. Call it inside dspy.context(lm=…), or name one: judge(rubric, model=…)."
            )
        return Asked(lm.copy(rollout_id=None), adapter)
    from dspy_toolkit.lm.adapter import adapter_for
    from dspy_toolkit.lm.connection import judge_of

    lm = judge_of(lm, model)
    return Asked(lm, adapter or adapter_for(lm))


def ask(predictor: dspy.Predict, asked: Asked, values: Mapping[str, str]) -> tuple[Any, str]:
    """What a judge says, or None; and the text of a reply that cannot be parsed.

    Raises:
        ToolkitError, LMError: the model failed, or the budget is spent.
    """
    import dspy
    from dspy.utils.exceptions import AdapterParseError

    # A trace of its own: an optimizer must not take the judge's call for a step of the program.
    with dspy.context(lm=asked.lm, adapter=asked.adapter, trace=[]):
        try:
            return predictor(**values), ""
        except AdapterParseError as error:
            return None, str(error.lm_response)


def graded(outputs: Mapping[str, Any], fields: tuple[str, ...]) -> str:
    """The outputs that a judge is shown: those of `fields`, or all but the reasoning."""
    names = fields or [name for name in outputs if name != REASONING]
    return lines({name: outputs[name] for name in names if name in outputs})


def lines(values: Mapping[str, Any]) -> str:
    """`name: value`, a line each; what is no text as JSON."""
    plain = {name: as_json(value) for name, value in values.items()}
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in plain.items()
    )
