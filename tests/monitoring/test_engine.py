"""The engine's figures of a look: the real engine's own counters, added up over stretches, and nothing where it was not asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.throughput import step_figures
from dspy_toolkit.lm.protocol import EngineStats
from dspy_toolkit.monitoring.engine import EngineMeter, figures_of
from dspy_toolkit.testing import FakeEngine, fake_connection
from tests.engines import own_engines

if TYPE_CHECKING:
    from dspy_toolkit.lm.connection import Connection
    from dspy_toolkit.lm.engine.engine import Engine

INSTRUCTIONS = "Classify the question by the type of its answer, as a patient teacher would. " * 12


def test_the_real_engines_counters_become_figures(connection: Connection, engine: Engine) -> None:
    import dspy

    program = dspy.Predict(dspy.Signature('text: str -> label: Literal["number", "person"]', INSTRUCTIONS))

    def ask(number: int) -> None:
        with connection.context(connection.lm.copy(cache=False)):
            program(text=f"What is {number}?")

    meter, before = EngineMeter(connection.model), engine.stats()
    for stretch in (range(2), range(2, 5)):
        with meter.running():
            for number in stretch:
                ask(number)
        between = engine.stats()
    with meter.running():
        pass  # nothing is asked
    found = meter.figures
    assert found is not None and found.requests == 5
    assert found.prefix_hit_ratio is not None and 0.5 < found.prefix_hit_ratio < 1, "the instructions are read once"
    assert found.tokens_per_second and found.step_ms and found.step_rows == 1
    [overhead] = [each.value for each in step_figures(before, between, 1.0) if each.name == "step_overhead"]
    assert found.step_overhead == pytest.approx(overhead), "as benchmark-machine has it"
    assert found.step_overhead <= found.step_ms
    assert "5 requests" in found.sentence and "ms of it beside the model" in found.sentence


def test_another_engine_in_its_place_is_counted_from_its_beginning(tmp_path: Path) -> None:
    with own_engines():
        connection = fake_connection(lambda _: {"answer": "yes"}, tmp_path, check_grammar=False)
        meter = EngineMeter(connection.model)
        with meter.running():
            connection.lm("One?", cache=False)
        with meter.running():
            from dspy_toolkit.lm.connection import serve_engine

            connection.lm("Two?", cache=False)
            serve_engine(FakeEngine(lambda _: {"answer": "no"}, model=connection.model, check_grammar=False))
            connection.lm("Three?", cache=False)
        figures = meter.figures
    assert figures is not None and figures.requests == 2, "what the one before did in that stretch is lost with it"
    assert (figures.step_ms, figures.tokens_per_second) == (None, None), "a fake counts no time"


def test_without_a_request_there_are_no_figures(tmp_path: Path) -> None:
    nothing = dict.fromkeys(EngineStats.model_fields, 0.0)
    assert figures_of(nothing) is None
    with own_engines():
        connection = fake_connection(lambda _: {"answer": "yes"}, tmp_path, check_grammar=False)
        connection.lm("One?")
        meter, elsewhere = EngineMeter(connection.model), EngineMeter("openai/some-model")
        with meter.running(), elsewhere.running():
            connection.lm("One?")  # the cache answers
        assert (meter.figures, elsewhere.figures) == (None, None)
