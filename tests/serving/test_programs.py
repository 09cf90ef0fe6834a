"""Asking a program over HTTP, by any name that it has."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dspy_toolkit.errors import ModelError
from dspy_toolkit.registry import promote
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.mlflow_client import session
from tests.serving.conftest import fake, running, serving, wait_for


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


def test_ready_once_the_model_is_loaded(promoted: Settings) -> None:
    settings, engine = fake(promoted, lambda _: {"label": "person"})
    whole, loads = engine._serve, threading.Event()

    def slowly() -> None:
        assert loads.wait(20)
        whole()

    engine._serve = slowly  # type: ignore[method-assign]
    with running(settings) as server:
        before = server.http.get("/readyz")
        assert server.http.get("/healthz").status_code == 200
        loads.set()
        after = wait_for(lambda: (said := server.http.get("/readyz")).status_code == 200 and said)
    assert before.status_code == 503
    assert before.json() == {"status": "not ready", "registry": "ok", "models": {engine.model: "loading"}}
    assert after.json() == {"status": "ready", "registry": "ok", "models": {engine.model: "loaded"}}
    assert engine.requests == []


def test_a_model_that_cannot_be_loaded_is_told_to_each_request(promoted: Settings) -> None:
    settings, engine = fake(promoted, lambda _: {"label": "person"})

    def fails() -> None:
        raise ModelError("mlx/fake cannot load its weights: cut short.")

    engine._serve = fails  # type: ignore[method-assign]
    with running(serving(settings, fall_back_on=())) as server:
        ready = wait_for(lambda: (said := server.http.get("/readyz")).status_code == 200 and said)
        said = server.ask(text="Who?")
    assert ready.json()["models"] == {engine.model: "not loaded"}
    assert (said.status_code, said.json()["error"]["code"]) == (503, "model_unavailable")


def test_an_alias_is_looked_up_for_each_request(promoted: Settings, save_questions: Callable[..., int]) -> None:
    settings, engine = fake(promoted, lambda _: {"label": "person"})
    versions = [1, save_questions("Say numbers."), save_questions("Say persons.")]

    def name(version: int) -> None:
        with session(settings, "The alias was not moved") as mlflow:
            mlflow.set_registered_model_alias("questions", "candidate", str(version))

    with running(settings) as server:
        champion = server.ask("questions@champion", text="Who?")
        found = []
        for version in versions:
            name(version)
            found.append(server.ask("questions@candidate", text="Who?"))
        about = server.http.get("/v1/programs/questions@candidate").json()
        promote(settings, "questions", versions[1])
        wait_for(lambda: server.ask("questions@champion", text="Who?").json()["version"] == versions[1])
        unknown = [server.ask(each, text="Who?") for each in ("questions@no-such-alias", "questions@99", "others@1")]
    assert champion.json()["version"] == 1 and champion.headers["x-program-version"] == "questions@1"
    assert [each.json()["version"] for each in found] == versions
    assert [each.headers["x-program-version"] for each in found] == [f"questions@{each}" for each in versions]
    assert about["version"] == versions[2]
    assert [each.status_code for each in unknown] == [404] * 3
    codes = [each.json()["error"]["code"] for each in unknown]
    assert codes == ["no_such_version", "no_such_version", "no_such_program"]
    assert "Say persons." in engine.requests[2].messages[0].content
