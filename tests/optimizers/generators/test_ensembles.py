"""Ensembles in the pool: made of what climbed, charged with what they cost, and built on by their first member alone."""

from __future__ import annotations

import pytest

from dspy_toolkit.lm.ensembles import ensemble_of
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.optimizers.states import fill, prompt_of
from dspy_toolkit.project.states import levers_in_words
from tests.optimizers.toys import (
    LABELS,
    Toy,
    choice,
    demos_in,
    engine_of,
    profile,
    program,
    question,
    right_answer,
    rows,
)

SEEN = {"train": 40, "val": 80}


@pytest.mark.soak
def test_three_that_err_apart_are_right_together(toy: Toy) -> None:
    """Each set of demonstrations errs on rows of its own; no two of three are often wrong on the same one."""
    toy.train, toy.val = rows(40), rows(80, start=100)

    def knows(request: GenerationRequest) -> bool:
        shown = "".join(text for text, _ in demos_in(request))
        return bool(shown) and hash_of(shown + question(request)) % 10 < 8

    toy.knows = knows
    connection = toy.connect()
    found = toy.compile(choice("race", 1200, **SEEN), connection, profile=profile(**SEEN))
    own = next(each for each in found.generators if each.name == "ensemble")
    assert own.candidates >= 1 and own.lm_calls >= 3 * 8
    assert found.usage.lm_calls <= 1200
    trial = next(each for each in found.trials if each.generator == "ensemble")
    assert trial.label == "the majority of 3 candidates"
    single = max(each.tokens for each in found.trials if each.generator != "ensemble")
    assert trial.tokens > single
    if found.winner == "ensemble":
        loaded = fill(program(), toy.state(found))
        assert ensemble_of(loaded) is not None
        before = len(engine_of(connection).requests)
        with connection.context():
            loaded(text="the whale number 9999")
        assert len(engine_of(connection).requests) == before + 3
        assert levers_in_words(toy.state(found))[0].startswith("the majority of 3 prompts (")


def hash_of(text: str) -> int:
    import hashlib

    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


@pytest.mark.parametrize("name", ["labelled", "formats"])
def test_one_generator_alone_is_not_joined(toy: Toy, name: str) -> None:
    found = toy.compile(choice(name, 120))
    assert "ensemble" not in {each.name for each in found.generators}


def test_the_leader_of_a_pool_is_never_an_ensemble(toy: Toy) -> None:
    from dspy_toolkit.optimizers.generators.ensembles import together
    from dspy_toolkit.optimizers.generators.workshop import Workshop
    from dspy_toolkit.optimizers.pool.entry import Entry
    from dspy_toolkit.optimizers.pool.pool import Pool
    from dspy_toolkit.optimizers.settings import PoolSettings

    shop = Workshop(toy.problem(), profile(), PoolSettings(optimizer="race", generators=("knn",), rungs=(8,)), 300)
    base = Entry("baseline", "baseline", program(), [0.0] * 8)
    members = [program() for _ in range(3)]
    for number, member in enumerate(members):
        member.predictors()[0].demos = [{"text": f"the lime {number}", "label": LABELS[1]}]
    entry = Entry("ensemble", "e", together(members, "majority"), [1.0] * 8, number=1)
    from random import Random

    pool = Pool(baseline=base, families=[], score=lambda jobs: [], spent=lambda: 0, budget=10, calls_per_run=1.0,
                steps=(8,), random=Random(0), entries=[base, entry])  # fmt: skip
    shop.pool = pool
    assert pool.best is entry
    assert prompt_of(shop.leader) == prompt_of(members[0])
    assert right_answer("the lime 1") == "green"
