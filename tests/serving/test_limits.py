"""Keys, limits, and bodies that mean no good."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import pytest

from dspy_toolkit.errors import SettingsError
from dspy_toolkit.serving.keys import add_key, keys_file, read_keys, revoke_key
from dspy_toolkit.settings import Settings
from tests.serving.conftest import fake, running, serving, wait_for

PATH = "/v1/programs/questions/predict"


def test_keys_open_what_their_scopes_say(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    stored, key = add_key(promoted, "app")
    _, admin = add_key(promoted, "boss", ("admin",))
    assert key.split("_", 2)[2] not in keys_file(promoted).read_text()
    with running(settings) as server:

        def status(path: str, given: str | None, **more: str) -> int:
            headers = {"Authorization": f"Bearer {given}", **more} if given else more
            if path == PATH:
                return server.http.post(path, json={"text": "Who?"}, headers=headers).status_code
            return server.http.get(path, headers=headers).status_code

        assert [status(PATH, given) for given in (None, "no", "dtk_00000000_" + "a" * 43)] == [401] * 3
        assert status(PATH, key) == status(PATH, admin) == 200
        assert status(PATH, None, **{"X-API-Key": key}) == 200
        assert (status("/metrics", key), status("/metrics", admin), status("/metrics", None)) == (403, 200, 401)
        assert status("/healthz", None) == status("/readyz", None) == status("/", None) == 200
        revoke_key(promoted, "app")
        assert status(PATH, key) == 401
        revoke_key(promoted, "boss")
        assert read_keys(keys_file(promoted)) == []
        assert status(PATH, None) == 401  # an empty file opens nothing
        keys_file(promoted).write_text("{}")
        assert status(PATH, admin) == 503
    with pytest.raises(SettingsError, match="cannot be read"):
        add_key(promoted, "again")
    assert stored.scopes == ("predict",)


def test_other_sites_and_other_hosts_are_refused(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    with running(settings) as server:
        said = {
            "other origin": server.ask(text="a", headers={"Origin": "https://evil.example"}),
            "own origin": server.ask(text="a", headers={"Origin": server.address}),
            "rebound name": server.ask(text="a", headers={"Host": "evil.example"}),
            "a form": server.http.post(PATH, content=b'{"text": "a"}', headers={"Content-Type": "text/plain"}),
        }
    assert {name: answer.status_code for name, answer in said.items()} == {
        "other origin": 403,
        "own origin": 200,
        "rebound name": 403,
        "a form": 415,
    }
    assert not any("access-control-allow-origin" in answer.headers for answer in said.values())


HOSTILE: dict[str, tuple[bytes, int]] = {
    "no JSON": (b"{", 400),
    "nothing": (b"", 400),
    "bad UTF-8": (b'{"text": "\xff"}', 400),
    "half a surrogate": (b'{"text": "\\ud800"}', 400),
    "too deep": (b'{"text": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400),
    "a list": (b"[]", 422),
    "a missing field": (b"{}", 422),
    "a wrong type": (b'{"text": {"a": 1}}', 422),
    "an unknown field": (b'{"text": "a", "other": 1}', 422),
    "a privileged keyword": (
        b'{"text": "a", "lm": "openai/gpt", "demos": [], "config": {}, "signature": "a -> b"}',
        422,
    ),
    "too long a text": (json.dumps({"text": "a" * 3_000}).encode(), 413),
    "too large": (json.dumps({"text": "a" * 9_000}).encode(), 413),
}


def test_hostile_bodies_are_told_what_is_wrong_and_nothing_of_themselves(promoted: Settings) -> None:
    settings, engine = fake(promoted, lambda _: {"label": "person"})
    settings = serving(settings, max_body_bytes=8_000, max_field_characters=2_000)
    with running(settings) as server:
        for name, (body, status) in HOSTILE.items():
            for path in (PATH, PATH.replace("predict", "stream")):
                answer = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
                want = 413 if name == "too deep" else status
                assert answer.status_code == want, (name, answer.text)
                said = answer.json()["error"]
                assert said["request_id"] == answer.headers["x-request-id"] and said["code"]
                assert "Traceback" not in answer.text and "aaaa" not in answer.text
        deep = b'{"text": ' + b"[" * 3_000 + b"]" * 3_000 + b"}"
        answer = server.http.post(PATH, content=deep, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)

        def slowly() -> object:
            yield b'{"text": "'
            for _ in range(20):
                yield b"a" * 1_000

        chunked = server.http.post(PATH, content=slowly(), headers={"Content-Type": "application/json"})
        assert chunked.status_code == 413
        for deadline in ("soon", "-1", "0", "nan", "inf"):
            assert server.ask(text="a", headers={"X-Deadline-Seconds": deadline}).status_code == 400
        assert server.http.post("/v1/programs/nobody/predict", json={}).json()["error"]["code"] == "no_such_program"
        assert (
            server.http.post("/v1/programs/questions@9/predict", json={}).json()["error"]["code"] == "no_such_version"
        )
        assert server.http.get("/nowhere").json()["error"]["code"] == "not_found"
        assert server.http.get(PATH).status_code == 405
    assert not engine.requests


def test_every_limit_turns_away_with_429(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"}, seconds_per_token=0.03)
    busy = serving(settings, concurrency=1, queue_size=1)
    with running(busy) as server:

        async def many() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=server.address, timeout=20) as http:
                calls = [http.post(PATH, json={"text": f"{n}"}) for n in range(6)]
                return await asyncio.gather(*calls)

        said = asyncio.run(many())
        codes = sorted(answer.status_code for answer in said)
        assert codes == [200, 200, 429, 429, 429, 429]
        refused = [answer for answer in said if answer.status_code == 429]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
        assert server.back.admission.active == server.back.admission.waiting == 0
    with running(serving(settings, rate_per_minute=3)) as server:
        codes = [server.ask(text="again").status_code for _ in range(5)]
        stream = server.http.post(PATH.replace("predict", "stream"), json={"text": "again"})
    # A fixed minute may turn over in between.
    assert codes.count(429) >= 1 and codes[:3] == [200] * 3 and stream.status_code in (200, 429)
    with running(serving(settings, key_concurrency=1, concurrency=4)) as server:
        said = asyncio.run(many())
    assert {answer.json()["error"]["code"] for answer in said if answer.status_code == 429} == {"too_many_at_once"}


def test_a_batch_has_a_reply_for_each_row_and_a_limit(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    path = "/v1/programs/questions/predict/batch"
    with running(serving(settings, max_batch=4)) as server:
        said = server.http.post(path, json={"rows": [{"text": "a"}, {"txt": "b"}, {"text": "c"}]}).json()["replies"]
        assert server.http.post(path, json={"rows": [{"text": "a"}] * 5}).status_code == 413
        assert server.http.post(path, json={"rows": []}).status_code == 422
    assert [reply.get("prediction") for reply in said] == [{"label": "person"}, None, {"label": "person"}]
    assert said[1]["error"]["code"] == "bad_fields"


def test_a_deadline_ends_a_request_and_its_tokens(promoted: Settings) -> None:
    settings, engine = fake(promoted, lambda _: {"label": "person"}, seconds_per_token=0.3)
    with running(settings) as server:
        said = server.ask(text="slow", headers={"X-Deadline-Seconds": "0.4"})
        assert (said.status_code, said.json()["error"]["code"]) == (504, "deadline_exceeded")
        wait_for(lambda: engine.stats().active == engine.stats().queued == 0)
        # A client's own short deadline shuts nobody out.
        assert set(server.back.service.fallback.states().values()) <= {"closed"}


def test_stopping_finishes_what_was_accepted(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"}, seconds_per_token=0.05)
    said: list[int] = []
    with running(settings) as server:

        def ask() -> None:
            said.append(httpx.post(f"{server.address}{PATH}", json={"text": "x"}, timeout=60).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.back.admission.active == 4)
        server.server.should_exit = True
        for thread in threads:
            thread.join()
    assert said == [200] * 4


def test_the_log_holds_no_text_of_a_request_unless_asked(promoted: Settings, caplog: pytest.LogCaptureFixture) -> None:
    replies = [{"label": "person"}, "unreadable secret-reply"] * 2
    for texts in (False, True):
        settings, _ = fake(promoted, replies, check_grammar=False)
        caplog.clear()
        with caplog.at_level("INFO", "dspy_toolkit"), running(serving(settings, log_text=texts)) as server:
            for number in range(2):
                server.ask(text=f"secret-question {number}", headers={"X-Request-Id": "mine"})
        lines = [json.loads(each.getMessage()) for each in caplog.records if each.name.endswith("serving.access")]
        assert [line["status"] for line in lines] == [200, 502] and lines[0]["client_request_id"] == "mine"
        assert lines[0]["program"] == "questions" and lines[0]["version"] == 1
        ours = "\n".join(each.getMessage() for each in caplog.records if each.name.startswith("dspy_toolkit.serving"))
        assert ("secret-question" in ours) is texts
        assert "secret-reply" not in ours


def test_all_that_are_worked_on_are_in_the_engine_at_once(promoted: Settings) -> None:
    """What batches them is the engine, and it can batch only what it has: no pool of threads stands before it."""
    settings, engine = fake(promoted, lambda _: {"label": "person"}, seconds_per_token=0.2)
    settings = serving(settings, deadline_seconds=120)
    clients = settings.serving.concurrency

    async def many(address: str) -> int:
        async with httpx.AsyncClient(base_url=address, timeout=120, limits=httpx.Limits(max_connections=64)) as http:
            asks = [asyncio.ensure_future(http.post(PATH, json={"text": f"Who is {n}?"})) for n in range(clients)]
            most = 0
            while most < clients and not all(ask.done() for ask in asks):
                stats = engine.stats()
                most = max(most, stats.active + stats.queued)
                await asyncio.sleep(0.01)
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
        return most

    with running(settings) as server:
        assert asyncio.run(many(server.address)) == clients == 32
        wait_for(lambda: engine.stats().active == engine.stats().queued == 0)
