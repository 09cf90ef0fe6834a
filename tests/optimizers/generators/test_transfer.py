"""Which levers of another program a search starts with."""

from __future__ import annotations

import dspy

from dspy_toolkit.lm.levers import levers_of, pull
from dspy_toolkit.optimizers.generators.transfer import transfer


def test_levers_are_carried_where_they_mean_the_same() -> None:
    same, other, given = (
        dspy.Predict("text -> label: bool"),
        dspy.Predict("text -> label: str"),
        dspy.Predict("text -> label: bool"),
    )
    pull(given, format="plain", adapter="0" * 64)
    assert levers_of(transfer(same, given, "it")) == {"format": "plain", "adapter": "0" * 64}
    assert levers_of(transfer(other, given, "it")) == {"format": "plain"}
