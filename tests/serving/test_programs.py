"""Asking a program over HTTP."""

from __future__ import annotations

from dspy_toolkit.settings import Settings
from tests.serving.conftest import fake, running


def test_the_champion_answers_with_its_own_types(promoted: Settings) -> None:
    settings, engine = fake(promoted, [{"label": "number"}])
    with running(settings) as server:
        first = server.ask(text="How many legs has a spider?")
        again = server.ask(text="How many legs has a spider?")
    assert first.status_code == 200, first.text
    said = first.json()
    assert said["prediction"] == {"label": "number"}
    assert (said["program"], said["version"], said["model"]) == ("questions", 1, engine.model)
    assert said["usage"]["lm_calls"] == said["usage"]["model_calls"] == 1
    assert said["usage"]["prompt_tokens"] > 0 and said["timings"]["seconds"] > 0
    assert not said["cached"] and again.json()["cached"]
    assert "Say what the answer is." in engine.requests[0].messages[0].content
    assert first.headers["x-request-id"] == said["request_id"] != again.headers["x-request-id"]
