"""Every route against its own description: what schemathesis makes of it, a bounded number of requests."""

from __future__ import annotations

import json
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from dspy_toolkit.settings import Settings
from tests.serving.conftest import fake, running, serving

CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance]


def test_every_route_keeps_to_its_description(promoted: Settings) -> None:
    home, _ = fake(promoted, lambda request: {"label": "person"} if request.grammar else "Hello.")
    with running(serving(home, rate_per_minute=100_000)) as server:
        schema = schemathesis.openapi.from_dict(server.http.get("/openapi.json").json())
        schema.config.update(base_url=server.address)
        seen: set[str] = set()
        for result in schema.get_all_operations():
            operation = result.ok()
            seen.add(f"{operation.method.upper()} {operation.path}")

            @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @schemathesis_given(operation)
            def fuzz(case: Any) -> None:
                response = case.call(base_url=server.address)
                case.validate_response(response, checks=CHECKS)

            fuzz()
        assert "POST /v1/programs/questions/predict" in seen and "POST /v1/chat/completions" in seen
        assert len(seen) >= 12


def schemathesis_given(operation: Any) -> Any:
    from hypothesis import given

    return given(case=operation.as_strategy())


def test_the_examples_of_the_description_work(promoted: Settings) -> None:
    home, _ = fake(promoted, lambda _: {"label": "person"})
    with running(home) as server:
        found = server.http.get("/openapi.json").json()
        body = found["components"]["schemas"]["questions.inputs"]["example"]
        assert server.ask(**body).status_code == 200
        assert json.dumps(found).count("Emma") == 0  # no row of anybody's data
        fields = found["components"]["schemas"]["questions.prediction"]["properties"]["label"]
    assert fields["enum"] == ["number", "person"]
