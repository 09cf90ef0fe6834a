"""Promotions and rollbacks while requests go on, by what is promoted and by what happens to the registry.

Not covered: thousands of requests through many swaps (`test_soak`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.errors import EngineBusy, EngineFailed, LeaseTimeout, ToolkitError
from dspy_toolkit.lm.models.adapters import AdapterConfig, write_adapter
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.registry import promote, rollback
from dspy_toolkit.sections import ChallengerTable, ServingSettings
from dspy_toolkit.serving.watching import LATE_TRIALS
from dspy_toolkit.settings import Settings
from tests.lm.conftest import tiny  # noqa: F401
from tests.lm.tiny import write_lora
from tests.serving.conftest import SCORED, Running, beside, fake, running, save_changed, serving, wait_for

SWAPPED = 'dspy_toolkit_serving_swaps_total{outcome="swapped",program="questions"} 1.0'


def by_instructions(request: Any) -> dict[str, Any]:
    return {"label": "number" if "numbers" in request.messages[0].content else "person"}


@contextmanager
def clients(server: Running, most: int) -> Iterator[list[tuple[int, int, str]]]:
    """Ask on and on in threads; yields each reply's status, version and label as they come."""
    said: list[tuple[int, int, str]] = []
    over = threading.Event()

    def keep_asking(who: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            answer = server.ask(text=f"{who} {number}")
            found = answer.json()
            said.append((answer.status_code, found.get("version"), found.get("prediction", {}).get("label")))

    threads = [threading.Thread(target=keep_asking, args=(who,)) for who in range(most)]
    for thread in threads:
        thread.start()
    try:
        yield said
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_promotion_takes_effect_without_a_failed_or_mixed_request(
    promoted: Settings, save_questions: Callable[..., int]
) -> None:
    settings, _ = fake(promoted, by_instructions)
    with running(settings) as server:
        with clients(server, 3) as said:
            wait_for(lambda: len(said) > 5)
            promote(settings, "questions", save_questions("Say numbers."))
            wait_for(lambda: any(version == 2 for _, version, _ in said))
            rollback(settings, "questions")
            wait_for(lambda: said[-1][1] == 1)
        one_of_the_old = server.ask("questions@2", text="now")
        metrics = server.http.get("/metrics").text
    assert {status for status, _, _ in said} == {200}
    assert {(version, label) for _, version, label in said} == {(1, "person"), (2, "number")}
    assert one_of_the_old.json()["version"] == 2 and one_of_the_old.headers["x-program-version"] == "questions@2"
    assert 'dspy_toolkit_serving_swaps_total{outcome="swapped",program="questions"} 2.0' in metrics


def test_a_promotion_takes_effect_within_5_seconds(promoted: Settings, save_questions: Callable[..., int]) -> None:
    """From the alias that has moved to the first reply of its version, at the settings as they come."""
    settings, _ = fake(promoted, by_instructions)
    settings = serving(settings, poll_seconds=ServingSettings().poll_seconds)
    version = save_questions("Say numbers.")
    with running(settings) as server, clients(server, 3) as said:
        wait_for(lambda: len(said) > 5)
        promote(settings, "questions", version)
        began = time.monotonic()
        wait_for(lambda: any(found == version for _, found, _ in said))
        seconds = time.monotonic() - began
    assert seconds < 5
    assert {status for status, _, _ in said} == {200}


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


@pytest.mark.parametrize("error", [EngineBusy("full"), EngineFailed("it died"), LeaseTimeout("another has it")])
def test_a_busy_engine_does_not_refuse_a_version(
    promoted: Settings, save_questions: Callable[..., int], error: ToolkitError
) -> None:
    """What the engine cannot do now says nothing of the version: it is tried again."""
    failures = [error] * 2

    def reply(request: Any) -> Any:
        if "numbers" not in request.messages[0].content:
            return {"label": "person"}
        return failures.pop() if failures else {"label": "number"}

    settings, _ = fake(promoted, reply)
    with running(settings) as server:
        promote(settings, "questions", save_questions("Say numbers."))
        wait_for(lambda: server.ask(text="Who?").json()["version"] == 2)
        metrics = server.http.get("/metrics").text
    assert not failures
    assert SWAPPED in metrics and 'outcome="refused"' not in metrics
    assert 'dspy_toolkit_serving_swaps_total{outcome="postponed",program="questions"} 2.0' in metrics


def test_a_version_that_hangs_is_tried_within_the_deadline_and_keeps_no_other_name_waiting(
    promoted: Settings, save_questions: Callable[..., int], tmp_path: Path
) -> None:
    settings, engine = fake(promoted, by_instructions, seconds_per_token=0.5)
    quick, _ = fake(promoted, lambda _: {"label": "person"})
    settings = beside(settings, tmp_path / "quick.toml", quick.lm.model)
    programs = (str(tmp_path / "quick.toml"), "questions")
    with running(serving(settings, deadline_seconds=0.5, programs=programs)) as server:
        hanging, other = (server.back.service.entries[name] for name in ("questions", "quick"))
        wait_for(lambda: server.ask("quick", text="Is everything imported?").status_code == 200)
        promote(settings, "questions", save_questions("Say numbers."))
        wait_for(lambda: engine.stats().cancelled == 1)
        promote(settings, "quick", save_changed(settings, project="quick"))
        wait_for(lambda: other.standing.live.version == 1)
        refused_by_then = hanging.refused
        wait_for(lambda: hanging.refused)
        metrics = server.http.get("/metrics").text
    assert refused_by_then is None, "the machine may have been slow"
    assert hanging.standing.live.version == 1
    assert hanging.refused is not None and "There was no answer in 0.5 s" in hanging.refused[1]
    assert (engine.stats().cancelled, engine.stats().finished) == (LATE_TRIALS, 0)
    assert 'swaps_total{outcome="refused",program="questions"} 1.0' in metrics


def test_the_server_stops_while_a_version_is_tried(promoted: Settings, save_questions: Callable[..., int]) -> None:
    settings, engine = fake(promoted, by_instructions, seconds_per_token=0.5)
    with running(settings) as server:
        promote(settings, "questions", save_questions("Say numbers."))
        wait_for(lambda: engine.stats().active)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    wait_for(lambda: engine.stats().cancelled == 1)
    assert server.back.service.entries["questions"].refused is None


def test_a_version_is_tried_on_a_kept_example(promoted: Settings, save_questions: Callable[..., int]) -> None:
    settings, engine = fake(promoted, by_instructions)
    with running(settings) as server:
        promote(settings, "questions", save_questions("Say numbers."))
        wait_for(lambda: server.back.service.entries["questions"].standing.live.version == 2)
    (tried,) = engine.requests
    assert "Say numbers." in tried.messages[0].content
    assert "Who wrote Emma?" in tried.messages[-1].content, "the first demonstration's input"
    assert "an example of text" not in tried.messages[-1].content


def test_a_challenger_that_cannot_be_loaded_is_left_out(
    promoted: Settings, save_questions: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    settings, _ = fake(promoted, by_instructions)
    settings = serving(settings, challengers={"questions": ChallengerTable(version=99, share=1)})
    with running(settings) as server:
        first = server.ask(text="Who?")
        challenger = server.http.get("/v1/programs/questions/challenger")
        promote(settings, "questions", save_questions("Say numbers."))
        wait_for(lambda: server.ask(text="Who else?").json()["version"] == 2)
        about = server.http.get("/v1/programs/questions").json()
    assert first.status_code == 200
    assert (challenger.status_code, challenger.json()["error"]["code"]) == (404, "no_challenger")
    assert about["challenger"] is None and about["refused"] is None
    warned = [each.getMessage() for each in caplog.records if "no challenger" in each.getMessage()]
    assert len(warned) == 2 and all("No version 99 of questions" in each for each in warned)


@pytest.mark.parametrize("how", ["garbage", "removed"])
def test_while_the_registry_is_gone_what_was_live_goes_on(
    promoted: Settings, save_questions: Callable[..., int], how: str
) -> None:
    settings, _ = fake(promoted, by_instructions)
    database, away = promoted.path("mlflow.db"), promoted.path("mlflow.away")
    with running(settings) as server:
        database.rename(away)
        if how == "garbage":
            database.write_bytes(b"no database at all")
        wait_for(lambda: server.back.service.watcher.trouble)
        ready = server.http.get("/readyz")
        said = server.ask(text="Who?")
        another = server.ask("questions@7", text="Who?")
        time.sleep(3 * settings.serving.poll_seconds)
        assert database.exists() is (how == "garbage"), "nothing is made in its place"
        assert server.back.service.watcher.trouble is not None
        away.rename(database)
        wait_for(lambda: server.back.service.watcher.trouble is None)
        promote(settings, "questions", save_questions("Say numbers."))
        wait_for(lambda: server.ask(text="Who now?").json()["version"] == 2)
        again = server.http.get("/readyz")
    assert (ready.status_code, ready.json()["registry"]) == (200, "unreadable: what was live goes on")
    assert said.status_code == 200 and said.json()["version"] == 1
    # Whether there is such a version is not known now.
    assert (another.status_code, another.json()["error"]["code"]) == (503, "version_unusable")
    assert again.json()["registry"] == "ok"


def test_a_program_is_served_as_predict_runs_it(promoted: Settings) -> None:
    """With its format and its fitted labels, whole and streamed."""
    promote(promoted, "questions", save_changed(promoted, format="plain", labels={"label": SCORED}))
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


def test_two_adapters_of_one_base_are_swapped_and_asked_at_once(
    home: Settings,
    save_questions: Callable[..., int],
    tiny: Callable[..., Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    """On a tiny model, whose probabilities tell which adapter computed them."""
    weights = find_weights(f"mlx/{tiny('llama')}", home.path())
    origin: dict[str, Any] = {"base": weights.name, "base_sha256": weights.sha256, "rows_sha256": "", "settings": {}}
    origin |= {"best_step": 1, "steps": 1, "tokens": 1, "seconds": 1.0, "versions": {}}
    save_questions()
    # A tenth of the scores, so that no probability is as good as 0 or 1.
    scored: dict[str, Any] = {"format": "plain", "labels": {"label": SCORED | {"weights": [[0.1, 0], [0, 0.1]]}}}
    versions = [save_changed(home, **scored)]
    for seed in (1, 2):
        folder = write_lora(tmp_path / f"lora {seed}", weights.folder, scale=2.0, seed=seed)
        config = AdapterConfig.model_validate_json((folder / "adapter_config.json").read_bytes())
        data = (folder / "adapters.safetensors").read_bytes()
        versions.append(save_changed(home, **scored, adapter=write_adapter(home.path(), config, data, origin).sha256))
    promote(home, "questions", versions[1])
    lm = home.lm.model_copy(update={"model": f"mlx/{weights.folder}"})
    settings = serving(home.model_copy(update={"lm": lm}), poll_seconds=0.1, fall_back_on=())
    asked = [(f"questions@{version}", number) for number in (1, 2) for version in versions]

    def chance(server: Running, name: str, number: int) -> float:
        said = server.ask(name, text=f"Who wrote volume {number}?").json()
        assert not said["cached"], said
        return said["prediction"]["probabilities"]["person"]

    def forget() -> None:
        dspy.cache.reset_memory_cache()
        dspy.cache.disk_cache.clear()

    with running(settings) as server:
        with ThreadPoolExecutor(len(asked)) as threads:
            at_once = list(threads.map(lambda each: chance(server, *each), asked))
        forget()
        alone = [chance(server, *each) for each in asked]
        before = server.ask(text="Who?").json()["version"]
        promote(home, "questions", versions[2])
        wait_for(lambda: server.ask(text="Who?").json()["version"] == versions[2])
        forget()
        swapped = chance(server, "questions", 1)
    assert before == versions[1]
    assert len({round(found, 2) for found in alone[:3]}) == 3, "the base and its two adapters differ"
    assert at_once == pytest.approx(alone, abs=1e-3)
    assert swapped == pytest.approx(alone[2], abs=1e-3)
