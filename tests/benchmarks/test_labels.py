"""The benchmark of scored labels, on the fake: that it runs both ways, and what its table says."""

from __future__ import annotations

import pytest

from benchmarks.lm.labels import LONG, PREFIX, SHORT, SUFFIX, Case, Times, measure, prompts, table
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.testing import FakeEngine


@pytest.mark.parametrize("case", [Case("short", 3, "kept"), Case("long", 2, "new")])
def test_both_ways_are_asked_the_same(case: Case) -> None:
    labels = SHORT if case.labels == "short" else LONG

    def answer(request: GenerationRequest) -> str:
        return f"{PREFIX}{labels[1]}{SUFFIX}"

    engine = FakeEngine(answer)
    try:
        times = measure(engine, case, repeats=2)
    finally:
        engine.close()
    assert len(times.decoded) == len(times.scored) == 2
    scored = [request for request in engine.requests if request.label_scores is not None]
    assert len(scored) == len(engine.requests) / 2 == 3 * case.requests
    assert all(request.label_scores.labels == labels for request in scored if request.label_scores)
    beginnings = {request.messages[0].content for request in engine.requests}
    assert len(beginnings) == (1 if case.beginning == "kept" else 6)


def test_prompts_share_all_but_the_question() -> None:
    first, second = prompts("salt", 2)
    assert first[0] == second[0] != prompts("another", 1)[0][0]
    assert first[1] != second[1]


def test_table() -> None:
    text = table({Case("short", 16, "kept"): Times([2.0, 1.0, 3.0], [1.5, 2.5], [9.0, 9.0])})
    assert "1.000 (2.000)" in text and "1.500 (2.000)" in text and text.splitlines()[1].split()[-2:] == ["1.50", "9.0"]
