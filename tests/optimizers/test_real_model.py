"""Each optimizer on the embedded model, with a tiny budget. It is too weak to gain much: what counts is that it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_toolkit.lm import Connection, grammar
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.optimizers import Budget, Problem, compile_program, probe, select
from dspy_toolkit.optimizers.states import fill
from dspy_toolkit.store import Store
from tests.optimizers.toys import SPEC, profile, program, rows
from tests.samples import sample

LM_CALLS = {"labelled": 20, "knn": 20, "bootstrap": 24, "random": 24, "mipro": 40, "gepa": 80}


@pytest.fixture
def problem(tmp_path: Path, connection: Connection) -> Problem:
    return Problem(
        program=program(),
        train=rows(6),
        val=rows(5, start=100),
        spec=SPEC,
        metric=exact_match,
        connection=connection,
        store=Store(str(tmp_path)),
        threads=4,
    )


@pytest.fixture
def short_texts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the model writes ends after 80 characters: two cores need a minute for the seven texts of MIPROv2 otherwise."""
    monkeypatch.setattr(grammar, "MAX_CHARACTERS", 80)
    grammar._grammar.cache_clear()
    yield
    grammar._grammar.cache_clear()


@pytest.mark.usefixtures("short_texts")
def test_a_probe(problem: Problem) -> None:
    seen = probe(problem)
    assert (seen.train, seen.val, seen.probed, seen.predictors) == (6, 5, 5, 1)
    assert seen.calls_per_run == 1.0
    assert seen.feedback
    assert seen.parse_failures == 0
    assert seen.prompt_tokens > 30
    assert seen.reflector_note


@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize(
    "name",
    sample(LM_CALLS, "bootstrap"),
)
def test_an_optimizer(problem: Problem, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    budget = Budget(name="tiny", lm_calls=LM_CALLS[name])
    seen = profile(train=6, val=5, probed=5)
    choice = select(seen, name, budget)
    compiled = compile_program(problem, choice, profile=seen, progress=lambda *said: None)
    assert compiled.usage.lm_calls <= LM_CALLS[name]
    assert compiled.trials[0].label == "baseline"
    assert len(compiled.trials) > 1 or name == "gepa"
    assert compiled.changed == (compiled.val_mean > compiled.val_baseline)
    assert capfd.readouterr() == ("", "")
    with problem.connection.context():
        answer = fill(program(), problem.store.read_json(compiled.program))(text="the whale number 12").label
    assert answer in ("red", "green", "blue")
