"""Every route against its own description: what schemathesis makes of it, a bounded number of requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from pydantic import SecretStr
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from dspy_toolkit.sections import EnsembleTable
from dspy_toolkit.serving.keys import add_key
from dspy_toolkit.settings import Settings
from tests.serving.conftest import fake, running, serving

EXAMPLES = 6
"""Requests of each kind to each route."""
CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance]


@pytest.mark.parametrize("mode", GenerationMode)
def test_every_route_keeps_to_its_description(promoted: Settings, mode: GenerationMode) -> None:
    """On requests that fit it, and on those that do not, which are refused."""
    home, _ = fake(promoted, lambda request: {"label": "person"} if request.grammar else "Hello.")
    with running(serving(home, rate_per_minute=100_000)) as server:
        schema = schemathesis.openapi.from_dict(server.http.get("/openapi.json").json())
        schema.config.update(base_url=server.address)
        seen: set[str] = set()
        for result in schema.get_all_operations():
            operation = result.ok()
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
                continue  # there is nothing to get wrong
            seen.add(f"{operation.method.upper()} {operation.path}")
            # A batch says of each row what is wrong with it.
            told = mode is GenerationMode.NEGATIVE and not operation.path.endswith("/batch")
            checks = [*CHECKS, negative_data_rejection] if told else CHECKS

            @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def fuzz(case: Any) -> None:
                response = case.call(base_url=server.address)
                case.validate_response(response, checks=checks)  # noqa: B023  (called in this round)

            fuzz()
        assert {f"POST /v1/programs/questions/{what}" for what in ("predict", "predict/batch", "stream")} <= seen
        assert {"POST /v1/chat/completions", "POST /v1/embeddings", "POST /v1/feedback"} <= seen
        assert "POST /v1/projects/{name}/advise" in seen


MODELS = """
from enum import Enum
from typing import Annotated
import dspy
from pydantic import BaseModel, Field, computed_field
from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.project import Project


class Kind(Enum):
    {kinds}


class Item(BaseModel):
    kind: Kind
    {fields}

    @computed_field
    @property
    def title(self) -> str:
        return self.kind.value


class Sort(dspy.Signature):
    item: Item = dspy.InputField()
    stars: int = dspy.InputField(ge=0, le=5)
    share: Annotated[float, Field(gt=0, lt=1)] = dspy.InputField()
    sorted_item: Item = dspy.OutputField()
    kind: Kind = dspy.OutputField()


project = Project(
    name="{name}", summary="Sort", program=lambda: dspy.Predict(Sort), metric=exact_match,
    dataset=DatasetSpec(source="rows.csv", inputs=("item", "stars", "share"), outputs=("sorted_item", "kind")),
)
"""


def test_models_of_one_name_stay_apart_and_their_bounds_hold(promoted: Settings, tmp_path: Path) -> None:
    """Two programs have each an `Item` and a `Kind` of their own; an `Item` that goes in is not one that comes out."""
    of = {
        "fruits": {"kinds": "APPLE, PEAR = 'apple', 'pear'", "fields": "weight: int = Field(3, ge=0, le=5)"},
        "cars": {"kinds": "VAN, BUS = 'van', 'bus'", "fields": "doors: int = Field(ge=2, le=5)"},
    }
    for name, parts in of.items():
        (tmp_path / f"{name}.py").write_text(MODELS.format(name=name, **parts))
    replies = lambda request: {  # noqa: E731
        "sorted_item": {"kind": "pear", "weight": 1}
        if "weight" in str(request.messages)
        else {"kind": "bus", "doors": 4},
        "kind": "pear" if "weight" in str(request.messages) else "bus",
    }
    home, _ = fake(promoted, replies, check_grammar=False)
    with running(serving(home, programs=tuple(f"{tmp_path / name}.py:project" for name in of))) as server:
        document = server.http.get("/openapi.json").json()
        schemas = document["components"]["schemas"]
        for name, field, kinds in (("fruits", "weight", ["apple", "pear"]), ("cars", "doors", ["van", "bus"])):
            fits = jsonschema.Draft202012Validator({**document, "$ref": f"#/components/schemas/{name}.inputs"}).is_valid
            example = schemas[f"{name}.inputs"]["example"]
            assert fits(example) and example["item"]["kind"] == kinds[0]
            answer = server.ask(name, **example)
            assert answer.status_code == 200, answer.text
            reply = jsonschema.Draft202012Validator({**document, "$ref": f"#/components/schemas/{name}.reply"})
            reply.validate(answer.json())
            wrong = [
                {**example, "stars": 6},
                {**example, "stars": -1},
                {**example, "share": 0},
                {**example, "share": 1},
                {**example, "item": {**example["item"], field: 6}},
                {**example, "item": {**example["item"], "kind": "bicycle"}},
            ]
            for inputs in wrong:
                refused = server.ask(name, **inputs)
                assert (refused.status_code, refused.json()["error"]["code"]) == (422, "bad_fields"), inputs
                assert not fits(inputs)
            inside, outside = (schemas[f"{name}.{part}.Item"] for part in ("inputs", "prediction"))
            assert set(inside["properties"]) == {"kind", field}
            assert set(outside["properties"]) == {"kind", field, "title"}
            assert schemas[f"{name}.inputs.Kind"]["enum"] == kinds


def test_every_example_of_the_description_works(promoted: Settings) -> None:
    """They are what `/docs` shows, in commands for a terminal."""
    home, engine = fake(promoted, lambda request: {"label": "person"} if request.grammar else "Hello.")
    _, key = add_key(promoted, "app", ("admin",))
    pair = EnsembleTable(members=("questions", "questions@1"), rule="majority")
    with running(serving(home, ensembles={"pair": pair})) as server:
        server.http.headers["Authorization"] = f"Bearer {key}"
        document = server.http.get("/openapi.json").json()
        asked = server.ask(**document["components"]["schemas"]["questions.inputs"]["example"])
        assert asked.status_code == 200
        statuses: dict[str, int] = {}
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                where = path
                for parameter in operation.get("parameters", []):
                    if parameter["in"] == "path":
                        where = where.replace(f"{{{parameter['name']}}}", parameter["example"])
                assert "{" not in where
                body = None
                if "requestBody" in operation:
                    content = operation["requestBody"]["content"]["application/json"]
                    body = content["example"]
                    jsonschema.validate(body, {**document, "allOf": [content["schema"]]})
                    if path == "/v1/feedback":
                        body = body | {"request_id": asked.json()["request_id"]}
                answer = server.http.request(method, where, json=body)
                statuses[f"{method.upper()} {where}"] = answer.status_code
                assert "data: " not in answer.text or "event: prediction" in answer.text
    none = "GET /v1/programs/questions/challenger"
    assert {call: status for call, status in statuses.items() if status != 200} == {none: 404, "POST /v1/feedback": 201}
    posts = [call for call in statuses if call.startswith("POST /v1/programs/")]
    assert len(posts) == 9 and {"POST /v1/chat/completions", "POST /v1/embeddings"} <= statuses.keys()
    assert json.dumps(document).count("Emma") == 0  # no row of anybody's data
    fields = document["components"]["schemas"]["questions.prediction"]["properties"]["label"]
    assert fields["enum"] == ["number", "person"]
    assert engine.model.partition("@")[0] in json.dumps(document["paths"]["/v1/embeddings"])


def test_without_a_local_model_there_is_no_example_of_asking_one(promoted: Settings) -> None:
    lm = type(promoted.lm)(model="openai/small", api_key=SecretStr("sk-test-of-serving"))
    with running(promoted.model_copy(update={"lm": lm})) as server:
        paths = server.http.get("/openapi.json").json()["paths"]
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        assert "example" not in paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert "none is" in paths[path]["post"]["description"]
