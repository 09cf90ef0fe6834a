"""Advice over HTTP: the same as the function gives, clear refusals, deadlines, and clients that go away."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx
import pytest

from dspy_toolkit.advising import advise
from dspy_toolkit.optimizers.states import state_of
from dspy_toolkit.project import load_project
from dspy_toolkit.project.signatures import fields_of, signature_hash
from dspy_toolkit.registry import Manifest, promote, save_version
from dspy_toolkit.serving.advice import THREADS
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking import runs as tracking
from tests.serving.conftest import fake, running, serving, wait_for

DESCRIPTION = "twelve hospitals, few rows each, very different patients"
PATH = "/v1/projects/federated/advise"
READ = {"clients": "a dozen", "skew": "strong", "devices": "unknown", "rounds": "unknown", "privacy": "unknown"}


@pytest.fixture
def reading(promoted: Settings) -> Settings:
    """A home in which a program that was optimized reads the descriptions of `federated`."""
    program = load_project("federated").build()
    manifest = Manifest(
        project="federated",
        optimizer="bootstrap",
        model="mlx/tiny@01234567",
        metric="advice_quality",
        signature_fields={name: str(kind) for name, kind in fields_of(program).items()},
        signature_sha256=signature_hash(program),
        reports={},
    )
    run_id = tracking.open_run(promoted, "federated", "optimize federated")
    promote(promoted, "federated", save_version(promoted, "federated", state_of(program), manifest, run_id))
    return promoted


def test_advice_is_what_the_function_gives(promoted: Settings) -> None:
    settings, _ = fake(promoted, [])
    with running(settings) as server:
        answer = server.http.post(PATH, json={"description": DESCRIPTION})
        unknown = server.http.post("/v1/projects/nowhere/advise", json={"description": DESCRIPTION})
        tool = server.http.post(PATH, json={"tool": "no such tool"})
    assert answer.status_code == 200, answer.text
    assert answer.json() == json.loads(json.dumps(advise("federated", DESCRIPTION, settings=settings).as_json()))
    assert answer.json()["written"] and answer.json()["why"]
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "no_such_project")
    assert "federated" in unknown.json()["error"]["message"]
    assert (tool.status_code, tool.json()["error"]["code"]) == (422, "bad_fields")


def test_the_promoted_program_reads_as_it_does_for_the_function(reading: Settings) -> None:
    settings, engine = fake(reading, lambda _: READ)
    with running(serving(settings, programs=("questions",))) as server:
        known = {"rounds": "few", "parameters": "5000"}
        answer = server.http.post(PATH, json={"description": DESCRIPTION, "known": known})
        again = server.http.post(PATH, json={"description": DESCRIPTION, "known": known})
    assert answer.status_code == 200, answer.text
    assert answer.json()["read_by"] == "the promoted program of federated"
    assert answer.json()["situation"]["clients"] == "a dozen" and answer.json()["situation"]["rounds"] == "few"
    said = advise("federated", DESCRIPTION, settings=settings, **known)
    assert again.json() == answer.json() == json.loads(json.dumps(said.as_json()))
    assert len(engine.requests) == 1  # the others were cached


def test_what_is_no_field_or_no_value_is_refused(promoted: Settings) -> None:
    names = ("no_such_field", "settings", "project", "description", "own", "self", "")
    values = {"clients": "no level", "parameters": "many", "epsilon": "nan", "delta": "inf"}
    settings, _ = fake(promoted, [])
    with running(settings) as server:
        for known in [*({name: "x"} for name in names), *({name: value} for name, value in values.items())]:
            answer = server.http.post(PATH, json={"known": known})
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_fields"), known


def test_a_client_names_no_file_of_the_server(promoted: Settings, tmp_path: Path) -> None:
    """`advise` on a command line reads the user's own files; a request's are nobody's."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one of ours"}\n')
    settings, _ = fake(promoted, [])
    with running(settings) as server:
        said = [
            server.http.post("/v1/projects/lora/advise", json={"known": {name: str(path)}})
            for name in ("data_file", "model_folder")
            for path in (rows, tmp_path, tmp_path / "missing")
        ]
    assert [answer.status_code for answer in said] == [422] * 6
    assert not any(str(tmp_path) in answer.text for answer in said)


def test_a_deadline_ends_a_request_for_advice(reading: Settings) -> None:
    settings, engine = fake(reading, lambda _: READ, seconds_per_token=0.05)
    with running(settings) as server:
        warm = server.http.post(PATH, json={"known": READ})
        assert warm.status_code == 200
        began = time.monotonic()
        said = server.http.post(PATH, json={"description": DESCRIPTION}, headers={"X-Deadline-Seconds": "0.5"})
        took = time.monotonic() - began
        odd = server.http.post(PATH, json={"description": DESCRIPTION}, headers={"X-Deadline-Seconds": "soon"})
        assert server.back.admission.active == 0
        # The thread's call of the model ends, and nothing comes after it.
        wait_for(lambda: engine.stats().active == engine.stats().queued == 0)
    assert (said.status_code, said.json()["error"]["code"]) == (504, "deadline_exceeded") and took < 3
    assert (odd.status_code, odd.json()["error"]["code"]) == (400, "bad_deadline")


def test_who_goes_away_frees_the_place_and_what_had_not_begun_never_begins(reading: Settings) -> None:
    settings, engine = fake(reading, lambda _: READ, seconds_per_token=0.1)
    said: list[int] = []
    with running(settings) as server:
        assert server.http.post(PATH, json={"known": READ}).status_code == 200

        def ask(number: int) -> None:
            body = {"description": f"{DESCRIPTION} {number}"}
            said.append(httpx.post(f"{server.address}{PATH}", json=body, timeout=60).status_code)

        def leave(number: int) -> None:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.address}{PATH}", json={"description": f"{DESCRIPTION} {number}"}, timeout=0.3)

        first = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
        later = [threading.Thread(target=leave, args=(number,)) for number in range(THREADS, THREADS + 4)]
        for thread in first:
            thread.start()
        wait_for(lambda: len(engine.requests) == THREADS)
        for thread in later:
            thread.start()
        for thread in later:
            thread.join()
        assert not said
        wait_for(lambda: server.back.admission.active == THREADS)
        at_work = [thread for thread in threading.enumerate() if thread.name.startswith("serving advice")]
        for thread in first:
            thread.join()
        assert len(at_work) == THREADS and said == [200] * THREADS
        assert len(engine.requests) == THREADS
        assert server.back.admission.active == server.back.admission.waiting == 0
