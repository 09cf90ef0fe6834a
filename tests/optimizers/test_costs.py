"""What the optimizers say that they will cost, against the calls that are counted then."""

from __future__ import annotations

import pytest

from dspy_toolkit.optimizers import Budget, Profile, probe, select
from dspy_toolkit.optimizers.search.catalog import OPTIMIZERS
from tests.optimizers.toys import Toy, by_demos, by_instruction

TOLERANCE = 0.15
KNOWS = {"mipro": by_instruction, "gepa": by_instruction}


def seen(toy: Toy) -> Profile:
    return probe(toy.problem())


@pytest.mark.parametrize("lm_calls", [150, 700])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_predicted_calls_are_those_that_are_counted(toy: Toy, name: str, lm_calls: int) -> None:
    profile = seen(toy)
    toy.knows = KNOWS.get(name, by_demos)
    choice = select(profile, name, Budget(name="b", lm_calls=lm_calls))
    compiled = toy.compile(choice)
    assert compiled.changed
    assert compiled.usage.lm_calls <= lm_calls
    assert compiled.usage.lm_calls == pytest.approx(choice.predicted_lm_calls, rel=TOLERANCE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_they_are_also_where_nothing_helps(toy: Toy, name: str) -> None:
    choice = select(seen(toy), name, Budget(name="b", lm_calls=300))
    assert toy.compile(choice).usage.lm_calls == pytest.approx(choice.predicted_lm_calls, rel=TOLERANCE)


def test_a_probe_costs_less_than_a_tenth_of_a_medium_budget(toy: Toy) -> None:
    probe(toy.problem())
    assert 0 < toy.kinds.total() < 120
