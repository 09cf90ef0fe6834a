"""What a predictor has beside its instruction and demonstrations: attributes that its state keeps, and the adapter here obeys.

`format`     how its fields become messages (`dspy_toolkit.lm.formats`)
`labels`     for an output that is a choice, how the scores of its labels become a choice (`dspy_toolkit.lm.label_rules`)
`adapter`    the hash of a LoRA adapter in `home/adapters`, with which an MLX model answers
`neighbors`  the rows of the store among which each input's own demonstrations are chosen (`dspy_toolkit.lm.neighbors`)
`ensemble`   several prompts, each with such levers of its own, which answer together (`dspy_toolkit.lm.ensembles`)

DSPy keeps attributes that it does not know through copies, and loads them from a state; it does not save them, which
`optimizers.states` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.lm.ensembles import ensemble_of
from dspy_toolkit.lm.formats.names import format_of
from dspy_toolkit.lm.label_rules import label_rules_of
from dspy_toolkit.lm.neighbors import neighbors_of


def adapter_of(predictor: Any) -> str | None:
    """The adapter that a predictor asks for, None for the model as it is.

    Raises:
        ProgramError: its `adapter` is no hash.
    """
    asked = getattr(predictor, "adapter", None)
    if asked is None or callable(asked):
        return None
    if not isinstance(asked, str) or not re.fullmatch("[0-9a-f]{8,64}", asked):
        raise ProgramError(f"A predictor asks for the adapter {asked!r}, which is no hash. Correct its `adapter`.")
    return asked


def _labels(predictor: Any) -> dict[str, Any] | None:
    return {name: rule.model_dump(mode="json") for name, rule in label_rules_of(predictor).items()} or None


def _neighbors(predictor: Any) -> dict[str, Any] | None:
    asked = neighbors_of(predictor)
    return None if asked is None else asked.model_dump(mode="json")


def _ensemble(predictor: Any) -> dict[str, Any] | None:
    asked = ensemble_of(predictor)
    return None if asked is None else asked.model_dump(mode="json")


LEVERS: Mapping[str, Callable[[Any], Any]] = {
    "format": format_of,
    "labels": _labels,
    "adapter": adapter_of,
    "neighbors": _neighbors,
    "ensemble": _ensemble,
}
"""Attribute → what a predictor has of it, as JSON; None where it has none."""


def levers_of(predictor: Any) -> dict[str, Any]:
    """What of the levers a predictor has, as its state keeps it. Raises ProgramError where one makes no sense."""
    return {name: value for name, read in LEVERS.items() if (value := read(predictor)) is not None}


def pull(predictor: Any, **levers: Any) -> None:
    """Set levers of a predictor; None takes one away."""
    for name, value in levers.items():
        if name not in LEVERS:
            raise ValueError(f"There is no lever {name!r}.")
        if value is not None:
            setattr(predictor, name, value)
        elif name in vars(predictor):
            delattr(predictor, name)


def clear(predictor: Any) -> None:
    """Take all levers from a predictor: a state that is loaded next says which it has."""
    pull(predictor, **dict.fromkeys(LEVERS))
