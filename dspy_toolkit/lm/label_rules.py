"""How the log-probabilities of a choice's labels become its probabilities, and which label is taken.

A model leans towards some labels whatever the input is. A rule turns its log-probabilities into logits by a linear map, which
is fitted on rows whose labels are known (`dspy_toolkit.optimizers.generators.label_weights`) and is part of a program's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError, model_validator

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.store import Frozen


class LabelRule(Frozen):
    """Logit i is the sum over j of `weights[i][j]` times label j's log-probability, plus `bias[i]`."""

    labels: tuple[str, ...] = Field(min_length=1)
    """As the model writes them, in the order of the annotation."""
    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    method: str = ""
    """How it was fitted, for people."""
    rows: int = 0
    """On how many rows."""
    accuracy: float | None = None
    """Of five folds, each by a rule that was fitted on the other four; None where nothing was fitted."""

    @model_validator(mode="after")
    def _square(self) -> LabelRule:
        size = len(self.labels)
        if len(self.bias) != size or [len(row) for row in self.weights] != [size] * size:
            raise ValueError(
                f"{size} labels need {size} biases and {size} rows of {size} weights; there are {len(self.bias)} biases and rows "
                f"of {[len(row) for row in self.weights]}"
            )
        return self

    def probabilities(self, logprobs: Sequence[float]) -> tuple[float, ...]:
        """Of each label; they sum to 1. Args: logprobs: natural, in the order of `labels`."""
        import numpy as np

        logits = np.asarray(self.weights) @ np.asarray(logprobs) + np.asarray(self.bias)
        raised = np.exp(logits - logits.max())
        return tuple(float(value) for value in raised / raised.sum())


def plain_rule(labels: Sequence[str]) -> LabelRule:
    """The model's own probabilities, as they are."""
    size = len(labels)
    weights = tuple(tuple(float(i == j) for j in range(size)) for i in range(size))
    return LabelRule(labels=tuple(labels), weights=weights, bias=(0.0,) * size)


def label_rules_of(predictor: Any) -> dict[str, LabelRule]:
    """Output → its rule, by the predictor's attribute `labels`; empty where its replies are decoded.

    Raises:
        ProgramError: what stands there is no rule.
    """
    given = getattr(predictor, "labels", None)
    if given is None or callable(given):
        return {}
    if not isinstance(given, Mapping):
        raise ProgramError(f"A predictor's `labels` is {str(given)[:80]!r}, not rules by output. Correct it.")
    try:
        return {str(name): LabelRule.model_validate(rule) for name, rule in given.items()}
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ProgramError(f"A predictor's `labels` holds no rule: {where}: {problem['msg']}. Correct it.") from None
