"""Advice over HTTP: the same as the function gives, and clear refusals."""

from __future__ import annotations

import json

from dspy_toolkit.settings import Settings
from tests.serving.conftest import fake, running

DESCRIPTION = "twelve hospitals, few rows each, very different patients"


def test_advice_is_what_the_function_gives(promoted: Settings) -> None:
    from dspy_toolkit.advising import advise

    settings, _ = fake(promoted, [])
    with running(settings) as server:
        answer = server.http.post("/v1/projects/federated/advise", json={"description": DESCRIPTION})
        unknown = server.http.post("/v1/projects/nowhere/advise", json={"description": DESCRIPTION})
        odd = server.http.post("/v1/projects/federated/advise", json={"known": {"no_such_field": "1"}})
        tool = server.http.post("/v1/projects/federated/advise", json={"tool": "no such tool"})
    assert answer.status_code == 200, answer.text
    assert answer.json() == json.loads(json.dumps(advise("federated", DESCRIPTION, settings=settings).as_json()))
    assert answer.json()["written"] and answer.json()["why"]
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "no_such_project")
    assert "federated" in unknown.json()["error"]["message"]
    assert (odd.status_code, odd.json()["error"]["code"]) == (422, "bad_fields")
    assert (tool.status_code, tool.json()["error"]["code"]) == (422, "bad_fields")
