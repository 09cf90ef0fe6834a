"""Promotions and rollbacks while requests go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from dspy_toolkit.lm.levers import pull
from dspy_toolkit.registry import promote, rollback
from dspy_toolkit.settings import Settings
from tests.serving.conftest import fake, running, serving, wait_for


def by_instructions(request: Any) -> dict[str, Any]:
    return {"label": "number" if "numbers" in request.messages[0].content else "person"}


def test_a_promotion_takes_effect_without_a_failed_or_mixed_request(
    promoted: Settings, save_questions: Callable[..., int]
) -> None:
    settings, _ = fake(promoted, by_instructions)
    said: list[tuple[int, int, str]] = []
    over = threading.Event()

    def keep_asking(server: Any, who: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            answer = server.ask(text=f"{who} {number}")
            found = answer.json()
            said.append((answer.status_code, found.get("version"), found.get("prediction", {}).get("label")))

    with running(settings) as server:
        threads = [threading.Thread(target=keep_asking, args=(server, who)) for who in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(said) > 5)
        promote(settings, "questions", save_questions("Say numbers."))
        wait_for(lambda: any(version == 2 for _, version, _ in said))
        rollback(settings, "questions")
        wait_for(lambda: said[-1][1] == 1)
        over.set()
        for thread in threads:
            thread.join()
        one_of_the_old = server.ask("questions@2", text="now")
        metrics = server.http.get("/metrics").text
    assert {status for status, _, _ in said} == {200}
    assert {(version, label) for _, version, label in said} == {(1, "person"), (2, "number")}
    assert one_of_the_old.json()["version"] == 2 and one_of_the_old.headers["x-program-version"] == "questions@2"
    assert 'dspy_toolkit_serving_swaps_total{outcome="swapped",program="questions"} 2.0' in metrics


def test_a_version_that_does_not_answer_is_refused(promoted: Settings, save_questions: Callable[..., int]) -> None:
    def reply(request: Any) -> Any:
        return "nonsense" if "numbers" in request.messages[0].content else {"label": "person"}

    settings, _ = fake(promoted, reply)
    with running(settings) as server:
        promote(settings, "questions", save_questions("Say numbers."))
        about = wait_for(lambda: server.http.get("/v1/programs/questions").json()["refused"])
        assert about["version"] == 2
        assert server.ask(text="Who?").json()["version"] == 1
        rollback(settings, "questions")
        wait_for(lambda: server.http.get("/v1/programs/questions").json()["refused"] is None)


def test_while_the_registry_is_gone_what_was_live_goes_on(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    database, away = promoted.path("mlflow.db"), promoted.path("mlflow.away")
    with running(settings) as server:
        database.rename(away)
        database.write_bytes(b"no database at all")
        wait_for(lambda: server.back.service.watcher.trouble)
        assert server.http.get("/readyz").json()["registry"].startswith("unreadable")
        assert server.ask(text="Who?").status_code == 200
        away.rename(database)
        wait_for(lambda: server.back.service.watcher.trouble is None)


def test_a_program_is_served_as_predict_runs_it(promoted: Settings, save_questions: Callable[..., int]) -> None:
    """With its format and its fitted labels, whole and streamed."""
    from dspy_toolkit.project import load_project
    from dspy_toolkit.registry import Manifest, load_version, save_version
    from dspy_toolkit.tracking import runs as tracking

    state, manifest = load_version(promoted, "questions@1")
    program = load_project(manifest.location).build()
    rule = {"labels": ["number", "person"], "weights": [[1, 0], [0, 1]], "bias": [0.0, 0.0]}
    pull(program, format="plain", labels={"label": rule})
    state |= {"format": "plain", "labels": {"label": rule}}
    run_id = tracking.open_run(promoted, "questions", "optimize questions")
    version = save_version(
        promoted, "questions", state, Manifest(**manifest.model_dump() | {"program_sha256": ""}), run_id
    )
    promote(promoted, "questions", version)
    settings, engine = fake(promoted, lambda _: {"number": 0.25, "person": 0.75})
    with running(serving(settings, fall_back_on=())) as server:
        found = server.ask(text="Who?").json()["prediction"]
        with server.http.stream("POST", "/v1/programs/questions/stream", json={"text": "Who else?"}) as response:
            streamed = response.read().decode()
        about = server.http.get("/v1/programs/questions").json()
        described = server.http.get("/openapi.json").json()
    assert found["label"] == "person" and found["confidence"] > 0.7
    assert abs(sum(found["probabilities"].values()) - 1) < 1e-9
    assert '"probabilities"' in streamed and "event: prediction" in streamed
    assert engine.requests[0].label_scores is not None
    assert about["levers"] == {"self": ["format plain", "label chosen by the model's own scores"]}
    assert "/v1/programs/questions/predict" in described["paths"]
