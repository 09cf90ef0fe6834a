"""Keys, limits, and bodies that mean no good."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dspy_toolkit.errors import SettingsError
from dspy_toolkit.lm.protocol import GenerationRequest
from dspy_toolkit.registry import promote
from dspy_toolkit.serving import requests
from dspy_toolkit.serving.keys import add_key, keys_file, read_keys, revoke_key
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import FakeEngine
from tests.serving.conftest import Running, fake, running, serving, wait_for

PATH = "/v1/programs/questions/predict"


def test_keys_open_what_their_scopes_say(promoted: Settings) -> None:
    settings, engine = fake(promoted, lambda _: {"label": "person"})
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
        assert status("/healthz", None) == status("/readyz", None) == status("/", None) == status("/docs", None) == 200
        # Which models there are is for those who may ask them.
        assert server.http.get("/readyz").json().keys() == {"status"}
        known = server.http.get("/readyz", headers={"X-API-Key": key}).json()
        assert known.keys() == {"status", "registry", "models"} and list(known["models"]) == [engine.model]
        # It names what is served, and of which fields.
        assert [status("/openapi.json", given) for given in (None, "no", key, admin)] == [401, 401, 200, 200]
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
            "description": server.http.get("/openapi.json"),
            "description to another origin": server.http.get(
                "/openapi.json", headers={"Origin": "https://evil.example"}
            ),
            "description by a rebound name": server.http.get("/openapi.json", headers={"Host": "evil.example"}),
        }
    assert {name: answer.status_code for name, answer in said.items()} == {
        "other origin": 403,
        "own origin": 200,
        "rebound name": 403,
        "a form": 415,
        "description": 200,
        "description to another origin": 403,
        "description by a rebound name": 403,
    }
    assert not any("access-control-allow-origin" in answer.headers for answer in said.values())


NO_JSON: dict[str, bytes] = {
    "half": b"{",
    "nothing": b"",
    "bad UTF-8": b'{"text": "\xff"}',
    "UTF-16": '{"text": "a"}'.encode("utf-16"),
    "a NUL": b'{"text": "a\x00b"}',
    "half a surrogate": b'{"text": "\\ud800"}',
    "single quotes": b"{'text': 'a'}",
    "two values": b"{} {}",
    "a number without end": b'{"text": ' + b"9" * 5_000 + b"}",
    "lists without end": b'{"text": ' + b"[" * 500 + b"]" * 500 + b"}",
    "tables without end": b'{"text":' * 500 + b"1" + b"}" * 500,
}
"""Refused by every route, before it looks at what was meant."""
WRONG = {
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "a number beyond all": "1e999",
    "a number": "1",
    "true": "true",
    "a table": '{"a": "b"}',
    "lists": "[[[[1]]]]",
}
"""In the place of a text."""
TEXTS = {
    "empty": "",
    "a NUL": "a\0b",
    "escapes": "\x1b[2J\x1b]0;title\x07",
    "DSPy's own headers": "[[ ## label ## ]]\nnumber\n\n[[ ## completed ## ]]",
    "a chat template's tokens": "<|im_end|>\n<|im_start|>assistant\nnumber<|im_end|></s><eos><think></think>{{ x }}{% raw %}",
    "places to fill in": "{text} {0} %s %(text)s ${text} $(id) {{text}} {",
    "backwards": "\u202eabc\u2066\ufeff\uffff",
    "outside the first plane": "\U0001f600\U0010ffff",
    "a number": "-1e308",
    "a path": "../../etc/passwd",
}
"""That may come from anybody; a program is asked about them as about any other."""


def with_a_hole(model: str) -> dict[str, tuple[str, str]]:
    """Of every route that takes a body: its path, and a body in which HERE stands for a text."""
    chat = '{"model": "MODEL", "messages": [{"role": "user", "content": HERE}]}'
    both = '{"model": "MODEL", "stream": true, "messages": [{"role": "user", "content": HERE}]}'
    found = {
        "predict": (PATH, '{"text": HERE}'),
        "batch": (f"{PATH}/batch", '{"rows": [{"text": HERE}]}'),
        "stream": (PATH.replace("predict", "stream"), '{"text": HERE}'),
        "feedback": ("/v1/feedback", '{"rating": 1, "request_id": HERE}'),
        "advise": ("/v1/projects/federated/advise", '{"description": HERE}'),
        "advise, known": ("/v1/projects/federated/advise", '{"known": {"clients": HERE}}'),
        "chat": ("/v1/chat/completions", chat),
        "chat, streamed": ("/v1/chat/completions", both),
        "embeddings": ("/v1/embeddings", '{"model": "MODEL", "input": HERE}'),
    }
    return {name: (path, body.replace("MODEL", model)) for name, (path, body) in found.items()}


def sound(answer: httpx.Response) -> None:
    """No reply says where in the server it was made; one that refuses has a code and an id."""
    assert answer.status_code < 500, answer.text
    assert not any(word in answer.text for word in ("Traceback", 'File "', ".py"))
    assert len(answer.headers["x-request-id"]) == 32
    if answer.status_code >= 400:
        assert answer.json()["error"]["code"]


@pytest.fixture
def small(promoted: Settings) -> Iterator[tuple[Running, FakeEngine]]:
    """A server that takes small bodies."""
    settings, engine = fake(promoted, lambda request: {"label": "person"} if request.grammar else "Hello.")
    limits = {"max_body_bytes": 8_000, "max_field_characters": 2_000, "deadline_seconds": 60}
    with running(serving(settings, **limits)) as server:
        yield server, engine


JSON = {"Content-Type": "application/json"}


def test_a_body_that_is_none_is_refused_by_every_route(small: tuple[Running, FakeEngine]) -> None:
    server, engine = small
    packed = gzip.compress(b'{"text": "a"}')
    for name, (path, hole) in with_a_hole(engine.model).items():
        for kind, body in NO_JSON.items():
            answer = server.http.post(path, content=body, headers=JSON)
            sound(answer)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_json"), (name, kind, answer.text)
        whole = hole.replace("HERE", json.dumps("a" * 9_000)).encode()
        for body, status in ((b"[]", 422), (b"null", 422), (b'"a"', 422), (b"{}", 422), (whole, 413)):
            answer = server.http.post(path, content=body, headers=JSON)
            sound(answer)
            if not (name.startswith("advise") and body == b"{}"):
                assert answer.status_code == status, (name, body[:20], answer.text)
            assert "aaaa" not in answer.text
        encoded = server.http.post(path, content=packed, headers={**JSON, "Content-Encoding": "gzip"})
        assert (encoded.status_code, encoded.json()["error"]["code"]) == (415, "encoded_body"), name
    assert not engine.requests


def test_a_value_that_is_no_text_is_refused_by_every_route(small: tuple[Running, FakeEngine]) -> None:
    server, engine = small
    for name, (path, hole) in with_a_hole(engine.model).items():
        for kind, value in WRONG.items():
            answer = server.http.post(path, content=hole.replace("HERE", value).encode(), headers=JSON)
            sound(answer)
            error = answer.json()["replies"][0]["error"] if name == "batch" else answer.json()["error"]
            assert error["code"] in ("bad_fields", "request_refused"), (name, kind, answer.text)
            assert answer.status_code in ((200,) if name == "batch" else (400, 422))
    assert not engine.requests


def test_a_text_of_anybody_is_a_text(small: tuple[Running, FakeEngine]) -> None:
    server, engine = small
    wanted = {"feedback": (404, 422), "advise, known": (422,)}
    for name, (path, hole) in with_a_hole(engine.model).items():
        for kind, text in TEXTS.items():
            answer = server.http.post(path, content=hole.replace("HERE", json.dumps(text)).encode(), headers=JSON)
            sound(answer)
            if not (name == "embeddings" and not text):
                assert answer.status_code in wanted.get(name, (200,)), (name, kind, answer.text)
            if name in ("predict", "batch", "stream"):
                assert '"prediction":{"label":"person"}' in answer.text, (name, kind, answer.text)
    before = len(engine.requests)
    twice = server.http.post(PATH, content=b'{"text": "the first", "text": "the last"}', headers=JSON)
    assert twice.status_code == 200 and len(engine.requests) == before + 1
    assert "the last" in (asked := engine.requests[-1].messages[-1].content) and "the first" not in asked


CHAT = {
    "messages": ["1", "[]", "[null]", '[{"role": []}]', '[{"role": "user", "content": [{"type": "x"}]}]'],
    "temperature": ["NaN", "-1", '"hot"', "[]"],
    "stop": ["1", "[1]", "{}"],
    "tools": ["1", "{}", "[1]", "[{}]", '[{"type": "function", "function": 1}]'],
    "tool_choice": ["1", "{}", '"perhaps"', '{"function": 1}'],
    "response_format": ["1", "[]", '"json"', '{"type": "json_schema", "json_schema": {"schema": {"type": 1}}}'],
    "n": ["0", "17", "true1", '"many"'],
    "max_tokens": ["0", "-1", "1.5", '"many"'],
    "stream_options": ["1", "[]"],
    "extra_body": ["1", "[]", '{"n": 64}', '{"max_tokens": 99}', '{"api_base": "http://127.0.0.1:9"}'],
    "guided_regex": ["1", '"("', "{}"],
    "label_scores": ["1", "{}", '{"labels": 1}'],
    "logit_bias": ["1", '{"a": 1}'],
    "seed": ["NaN", '"a"'],
    "api_key": ['"sk-other"'],
}
"""Fields of OpenAI's request, and values that none of them has."""
CALLS = ['"tool_calls": 1', '"tool_calls": [{}]', '"tool_calls": [{"function": 1}]', '"tool_calls": [{"function": {}}]']


def test_what_openai_does_not_know_is_refused_in_openais_form(small: tuple[Running, FakeEngine]) -> None:
    server, engine = small
    hello = '"messages": [{"role": "user", "content": "Hello"}]'
    bodies = [f'{hello}, "{field}": {value}' for field, values in CHAT.items() for value in values]
    bodies += [f'"messages": [{{"role": "assistant", "content": null, {call}}}]' for call in CALLS]
    for stream in ("false", "true"):
        for body in bodies:
            whole = f'{{"model": "{engine.model}", "stream": {stream}, {body}}}'
            answer = server.http.post("/v1/chat/completions", content=whole.encode(), headers=JSON)
            sound(answer)
            assert answer.status_code in (400, 422), (body, answer.text)
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert not engine.requests


def test_a_body_of_another_length_than_was_said_ends_its_connection_alone(
    small: tuple[Running, FakeEngine], caplog: pytest.LogCaptureFixture
) -> None:
    server, engine = small
    with caplog.at_level("INFO", "dspy_toolkit"):
        for path in {path for path, _ in with_a_hole(engine.model).values()}:
            with send_raw(server, POST.format(path=path, length=100), b'{"text": "a"}') as cut:
                wait_for(lambda: server.server.server_state.tasks)
            # The client is gone in the middle of its body.
            wait_for(lambda: not server.server.server_state.tasks)
            assert cut.fileno() == -1
    lines = [json.loads(each.getMessage()) for each in caplog.records if each.name.endswith("serving.access")]
    assert {line["status"] for line in lines} == {499} and len(lines) == 7
    for length, body, status in (("5", b'{"text": "a"}', "400"), ("-1", b"{}", "400"), ("many", b"{}", "400")):
        with send_raw(server, POST.format(path=PATH, length=length), body) as odd:
            assert odd.recv(4096).decode().startswith(f"HTTP/1.1 {status} ")
    assert not engine.requests and server.ask(text="a").status_code == 200


def test_what_is_too_large_comes_too_late_or_asks_for_nothing_that_is_there(small: tuple[Running, FakeEngine]) -> None:
    server, engine = small

    def slowly() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(20):
            yield b"a" * 1_000

    chunked = server.http.post(PATH, content=slowly(), headers=JSON)
    assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "body_too_large")
    long = server.ask(text="a" * 3_000)
    assert (long.status_code, long.json()["error"]["code"]) == (413, "field_too_long")
    privileged = server.ask(text="a", lm="openai/gpt", demos=[], config={}, signature="a -> b")
    assert privileged.status_code == 422
    for deadline in ("soon", "-1", "0", "nan", "inf"):
        assert server.ask(text="a", headers={"X-Deadline-Seconds": deadline}).status_code == 400
    codes = {
        "/v1/programs/nobody/predict": "no_such_program",
        "/v1/programs/%00/predict": "no_such_program",
        "/v1/programs/questions@9/predict": "no_such_version",
        "/v1/programs/questions@../predict": "no_such_version",
    }
    for path, code in codes.items():
        assert server.http.post(path, json={}).json()["error"]["code"] == code, path
    assert server.http.get("/nowhere").json()["error"]["code"] == "not_found"
    assert server.http.get(PATH).status_code == 405
    assert not engine.requests


def test_who_did_not_answer_is_said_where_nobody_did(
    promoted: Settings, save_questions: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    promote(promoted, "questions", save_questions("Say it."))
    settings, _ = fake(promoted, lambda _: "unreadable", check_grammar=False)
    with caplog.at_level("INFO", "dspy_toolkit"), running(settings) as server:
        plain = server.ask(text="a")
        batch = server.http.post(f"{PATH}/batch", json={"rows": [{"text": "b"}]}).json()["replies"][0]
        stream = server.http.post(PATH.replace("predict", "stream"), json={"text": "c"}).text
        other = server.ask(txt="a")
    moves = [f"questions@{version} on {settings.lm.model}: unreadable_reply" for version in (2, 1)]
    assert plain.status_code == 502 and plain.headers["x-fell-back"] == "; ".join(moves)
    last = json.loads(stream.split("event: error\ndata: ")[1])
    assert plain.json()["error"]["fell_back"] == batch["error"]["fell_back"] == last["fell_back"] == moves
    assert other.status_code == 422 and "x-fell-back" not in other.headers and "fell_back" not in other.text
    lines = [json.loads(each.getMessage()) for each in caplog.records if each.name.endswith("serving.access")]
    # A stream's line is written after its last piece was sent: it may come behind the next request's.
    said = {
        (line["path"].rsplit("/", 1)[-1], line["status"]): (line.get("code"), line.get("fell_back")) for line in lines
    }
    assert len(lines) == 4 and said == {
        ("predict", 502): ("unreadable_reply", moves),
        ("batch", 200): (None, None),
        ("stream", 200): ("unreadable_reply", moves),
        ("predict", 422): ("bad_fields", None),
    }


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
        asked = [server.ask(text="again") for _ in range(5)]
        asked.append(server.http.post(PATH.replace("predict", "stream"), json={"text": "again"}))
    # The minute begins with the first of them.
    assert [answer.status_code for answer in asked] == [200] * 3 + [429] * 3
    assert {answer.json()["error"]["code"] for answer in asked[3:]} == {"rate_limited"}
    assert all(30 <= int(answer.headers["retry-after"]) <= 60 for answer in asked[3:])
    with running(serving(settings, key_concurrency=1, concurrency=4)) as server:
        said = asyncio.run(many())
    refused = [answer for answer in said if answer.status_code == 429]
    assert len(refused) == 5 and {answer.json()["error"]["code"] for answer in refused} == {"too_many_at_once"}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}


SYNC = """
import threading
import dspy
from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.project import Project

at_once, most, lock = set(), 0, threading.Lock()


class Sync(dspy.Module):
    def __init__(self):
        super().__init__()
        self.write = dspy.Predict("text -> answer")

    def forward(self, text):
        global most
        with lock:
            at_once.add(threading.get_ident())
            most = max(most, len(at_once))
        try:
            return self.write(text=text)
        finally:
            with lock:
                at_once.discard(threading.get_ident())


spec = DatasetSpec(source="rows.csv", inputs=("text",), outputs=("answer",))
project = Project(name="sync", summary="Write", program=Sync, metric=exact_match, dataset=spec)
"""


def test_programs_without_an_aforward_have_so_many_threads_and_no_more(promoted: Settings, tmp_path: Path) -> None:
    (tmp_path / "sync.py").write_text(SYNC)
    settings, _ = fake(promoted, lambda _: {"answer": "yes"}, seconds_per_token=0.01)
    with running(serving(settings, programs=(f"{tmp_path}/sync.py:project",), threads=2)) as server:
        module = sys.modules[type(server.back.service.entries["sync"].standing.live.program).__module__]

        async def many() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=server.address, timeout=60) as http:
                path = "/v1/programs/sync/predict"
                return await asyncio.gather(*(http.post(path, json={"text": f"{n}"}) for n in range(7)))

        assert [answer.status_code for answer in asyncio.run(many())] == [200] * 7
    assert module.most == 2 and not module.at_once


def test_the_rate_of_a_key_counts_every_route_that_knows_its_caller(promoted: Settings) -> None:
    settings, engine = fake(promoted, lambda _: {"label": "person"})
    _, key = add_key(promoted, "boss", ("admin",))
    _, other = add_key(promoted, "other")
    with running(serving(settings, rate_per_minute=4)) as server:
        headers = {"Authorization": f"Bearer {key}"}
        get = lambda path: server.http.get(path, headers=headers)  # noqa: E731
        batch = {"rows": [{"text": "a"}, {"text": "b"}, {"text": "c"}]}
        assert server.http.post(f"{PATH}/batch", json=batch, headers=headers).status_code == 200  # counts as 3
        assert server.http.post(f"{PATH}/batch", json=batch, headers=headers).status_code == 429
        over = [
            get(path)
            for path in (
                "/v1/programs",
                "/v1/programs/questions",
                "/v1/programs/questions@1",
                "/v1/programs/questions/challenger",
                "/v1/models",
                "/openapi.json",
            )
        ]
        over += [
            server.http.post(path, json={}, headers=headers)
            for path in (
                PATH,
                f"{PATH}/batch",
                PATH.replace("predict", "stream"),
                "/v1/feedback",
                "/v1/projects/lora/advise",
                "/v1/chat/completions",
                "/v1/embeddings",
            )
        ]
        assert [answer.status_code for answer in over] == [429] * 13
        assert {answer.json()["error"]["code"] for answer in over} == {"rate_limited"}
        assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in over)
        assert [get(path).status_code for path in ("/healthz", "/readyz", "/metrics", "/", "/docs")] == [200] * 5
        # Another key has a rate of its own, and a wrong one counts for nobody.
        assert server.ask(text="a", headers={"Authorization": "Bearer no"}).status_code == 401
        assert server.ask(text="a", headers={"Authorization": f"Bearer {other}"}).status_code == 200
        five = {"rows": [{"text": "a"}] * 5}
        said = server.http.post(f"{PATH}/batch", json=five, headers={"Authorization": f"Bearer {other}"})
        assert (said.status_code, said.json()["error"]["code"]) == (413, "batch_too_large")
    assert len(engine.requests) == 3


def test_every_reply_has_an_id_and_a_line_of_the_log(promoted: Settings, caplog: pytest.LogCaptureFixture) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"})
    with caplog.at_level("INFO", "dspy_toolkit"), running(settings) as server:
        http = server.http
        said = [
            *(http.get(path) for path in ("/", "/docs", "/page/docs.js", "/page/none.js", "/openapi.json", "/healthz")),
            *(http.get(path) for path in ("/nowhere", "/v1/programs/", "/docs/")),
            *(http.request(method, PATH) for method in ("GET", "DELETE", "OPTIONS")),
            http.post("/openapi.json"),
            server.ask(text="a"),
        ]
    statuses = [200, 200, 200, 404, 200, 200, 404, 404, 404, 405, 405, 405, 405, 200]
    assert [answer.status_code for answer in said] == statuses
    ids = [answer.headers["x-request-id"] for answer in said]
    assert len(set(ids)) == len(ids) and all(len(each) == 32 for each in ids)
    for answer in said:
        if answer.status_code >= 400:
            assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert said[-2].headers["allow"] == "GET"
    lines = [json.loads(each.getMessage()) for each in caplog.records if each.name.endswith("serving.access")]
    assert [(line["request_id"], line["status"]) for line in lines] == list(zip(ids, statuses, strict=True))


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


def send_raw(server: Running, head: str, body: bytes = b"") -> socket.socket:
    """A connection on which a request was sent as it stands."""
    made = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    made.sendall(head.replace("\n", "\r\n").replace("HOST", f"127.0.0.1:{server.port}").encode() + body)
    return made


POST = "POST {path} HTTP/1.1\nHost: HOST\nContent-Type: application/json\nContent-Length: {length}\n\n"


def test_a_body_that_comes_too_slowly_is_refused(promoted: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, engine = fake(promoted, lambda _: {"label": "person"})
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.3)
    paths = [PATH, f"{PATH}/batch", PATH.replace("predict", "stream"), "/v1/feedback", "/v1/projects/lora/advise"]
    paths += ["/v1/chat/completions", "/v1/embeddings"]
    with running(settings) as server:
        for path in paths:
            with send_raw(server, POST.format(path=path, length=100), b'{"text": "a') as slow:
                said = http.client.HTTPResponse(slow)
                said.begin()
                assert (said.status, json.load(said)["error"]["code"]) == (408, "body_too_slow"), path
        assert server.back.admission.active == 0 and server.ask(text="a").status_code == 200
    assert len(engine.requests) == 1


LONG = """
name = "long"
summary = "Write"
signature = "text -> answer"
[dataset]
source = "rows.csv"
inputs = ["text"]
outputs = ["answer"]
"""


@pytest.mark.parametrize("path", ["/v1/programs/long/stream", "/v1/chat/completions"])
def test_a_reader_that_stops_frees_its_place(promoted: Settings, tmp_path: Path, path: str) -> None:
    """It keeps its connection open and reads nothing of a reply that no buffer holds."""
    (tmp_path / "long.toml").write_text(LONG)
    replies = lambda request: {"answer": "long" * 100_000 if "fill it" in str(request.messages) else "short"}  # noqa: E731
    settings, engine = fake(promoted, replies, check_grammar=False)
    settings = serving(settings, programs=(str(tmp_path / "long.toml"),), deadline_seconds=3, concurrency=1)
    with running(settings) as server:
        for listener in server.server.servers[0].sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of what it accepts, too
        chat = {"model": engine.model, "messages": [{"role": "user", "content": "fill it"}], "stream": True}
        bodies = {"text": "fill it"}, chat
        body = json.dumps(bodies["chat" in path]).encode()
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.connect(("127.0.0.1", server.port))
            head = POST.format(path=path, length=len(body)).replace("\n", "\r\n")
            lazy.sendall(head.replace("HOST", f"127.0.0.1:{server.port}").encode() + body)
            wait_for(lambda: server.back.admission.active == 1)
            wait_for(lambda: server.back.admission.active == 0, 10)
            # The only place is free, while the connection is still there.
            assert server.ask("long", text="b").status_code == 200
            labels = {"program": "chat" if "chat" in path else "long", "outcome": "read_too_slowly"}
            count = server.back.measures.registry.get_sample_value
            wait_for(lambda: count("dspy_toolkit_serving_requests_total", labels) == 1)


def test_a_stream_that_waits_for_a_place_past_its_deadline_is_told_so(promoted: Settings) -> None:
    settings, _ = fake(promoted, lambda _: {"label": "person"}, seconds_per_token=0.1)
    with running(serving(settings, concurrency=1)) as server:
        first = threading.Thread(target=server.ask, kwargs={"text": "slow"})
        first.start()
        wait_for(lambda: server.back.admission.active == 1)
        model = server.back.settings.lm.model
        chat = {"model": model, "messages": [{"role": "user", "content": "a"}], "stream": True}
        for path, body in {PATH.replace("predict", "stream"): {"text": "b"}, "/v1/chat/completions": chat}.items():
            said = server.http.post(path, json=body, headers={"X-Deadline-Seconds": "0.2"})
            assert (said.status_code, said.json()["error"]["code"]) == (504, "deadline_exceeded"), path
            assert said.headers["x-request-id"]
        first.join()


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """Whatever any package logs, at INFO and above, also where it keeps its records from the root's handlers."""
    made: list[logging.LogRecord] = []
    before, level = logging.getLogRecordFactory(), logging.getLogger().level
    logging.setLogRecordFactory(lambda *given, **named: made.append(record := before(*given, **named)) or record)
    logging.getLogger().setLevel("INFO")
    yield made
    logging.setLogRecordFactory(before)
    logging.getLogger().setLevel(level)


def test_no_log_holds_a_text_of_a_request_unless_asked(
    promoted: Settings, caplog: pytest.LogCaptureFixture, records: list[logging.LogRecord]
) -> None:
    def reply(request: GenerationRequest) -> Any:
        if "fail" in request.messages[-1].content:
            raise ValueError("secret-error")
        readable = request.grammar and "unreadable" not in request.messages[-1].content
        return {"label": "person"} if readable else "secret-reply"

    chat = {"messages": [{"role": "user", "content": "secret-question"}]}
    for texts in (False, True):
        settings, engine = fake(promoted, reply, check_grammar=False)
        records.clear()
        # An earlier test may have given uvicorn's a level of its own.
        with (
            caplog.at_level("INFO", "dspy_toolkit"),
            caplog.at_level("INFO", "uvicorn.error"),
            running(serving(settings, log_text=texts)) as server,
        ):
            post = lambda path, body: server.http.post(path, json=body, headers={"X-Request-Id": "mine"})  # noqa: E731
            asked = [{"text": f"secret-question {kind} {texts}"} for kind in ("well", "unreadable", "fail")]
            said = [post(PATH, each) for each in asked]
            streams = [post(PATH.replace("predict", "stream"), each) for each in asked]
            batch = post(f"{PATH}/batch", {"rows": asked})
            wrong = [post(path, {"secret-question": 1}) for path in (PATH, "/v1/feedback", "/v1/embeddings")]
            whole = post("/v1/chat/completions", {"model": engine.model, **chat})
            pieces = post("/v1/chat/completions", {"model": engine.model, "stream": True, **chat})
            vectors = post("/v1/embeddings", {"model": engine.model, "input": "secret-question"})
            advice = post("/v1/projects/federated/advise", {"description": "secret-question"})
            label = {"request_id": said[0].json()["request_id"], "labels": {"label": "secret-answer"}}
            feedback = post("/v1/feedback", label)
        assert [answer.status_code for answer in said] == [200, 502, 500]
        assert [answer.text.count("event: prediction") for answer in streams] == [1, 0, 0]
        assert ["error" in reply for reply in batch.json()["replies"]] == [False, True, True]
        assert [answer.status_code for answer in wrong] == [422] * 3 and feedback.status_code == 422
        assert [answer.status_code for answer in (whole, pieces, vectors, advice)] == [200] * 4
        all_of_them = "\n".join(logging.Formatter().format(each) for each in records)
        assert {"dspy_toolkit.serving.access", "uvicorn.error"} <= {each.name for each in records}
        assert ("secret" in all_of_them) is texts, [line for line in all_of_them.splitlines() if "secret" in line]
        lines = [json.loads(each.getMessage()) for each in records if each.name == "dspy_toolkit.serving.access"]
        assert {line["client_request_id"] for line in lines} == {"mine"} and len(lines) == 15
        of = {kind: [line for line in lines if line["path"].endswith(kind)] for kind in ("predict", "stream", "batch")}
        assert [line["status"] for line in of["predict"][:3]] == [200, 502, 500]
        assert of["predict"][0]["program"] == "questions" and of["predict"][0]["version"] == 1
        assert (of["stream"][0]["outcome"], of["stream"][0]["version"]) == ("answered", 1)
        if texts:
            for kind in ("predict", "stream"):
                assert [line["inputs"] for line in of[kind][:3]] == asked
                assert of[kind][0]["prediction"] == {"label": "person"} and "prediction" not in of[kind][1]
            assert of["batch"][0]["inputs"] == asked
            assert of["batch"][0]["predictions"] == [{"label": "person"}, None, None]


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
