"""What a search says that it will cost, against the calls that are counted then."""

from __future__ import annotations

import pytest

from dspy_toolkit.optimizers import Budget, Profile, probe, select
from dspy_toolkit.optimizers.generators.catalog import GENERATORS
from tests.optimizers.toys import Toy, rows
from tests.samples import sample

LEAST = 0.95
"""Of a budget, that is spent where candidates are left."""


def seen(toy: Toy) -> Profile:
    return probe(toy.problem())


FINITE = ("gepa", "simba", "formats", "labels", "knn")
"""What has nothing more to say at some point."""
ENDLESS = (*(name for name in GENERATORS if name not in (*FINITE, "finetune", "together")), "race", "auto")
"""What spends any budget; an adapter needs a model that can be trained."""


@pytest.mark.parametrize("lm_calls", [300, pytest.param(900, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", sample(ENDLESS, "race", "mipro"))
def test_the_budget_is_spent_and_not_exceeded(toy: Toy, name: str, lm_calls: int) -> None:
    toy.train, toy.val = rows(60), rows(60, start=100)
    profile = seen(toy)
    compiled = toy.compile(select(profile, name, Budget(name="b", lm_calls=lm_calls)), profile=profile)
    assert LEAST * lm_calls <= compiled.usage.lm_calls <= lm_calls
    assert sum(each.lm_calls for each in compiled.generators) <= compiled.usage.lm_calls


@pytest.mark.parametrize("name", sample(FINITE, "labels"))
def test_a_generator_that_has_nothing_more_to_say_saves_the_rest(toy: Toy, name: str) -> None:
    profile = seen(toy)
    compiled = toy.compile(select(profile, name, Budget(name="b", lm_calls=900)), profile=profile)
    assert 0 < compiled.usage.lm_calls <= 900


def test_a_probe_costs_less_than_a_tenth_of_a_medium_budget(toy: Toy) -> None:
    probe(toy.problem())
    assert 0 < toy.kinds.total() < 120
