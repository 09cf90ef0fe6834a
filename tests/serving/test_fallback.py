"""Who answers where the first cannot, and where what happened is said: a header, the log, a counter.

Not covered: the header of a reply that is an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from dspy_toolkit.errors import EngineFailed, RequestRefused
from dspy_toolkit.registry import promote
from dspy_toolkit.serving.fallback import FallBack, Move, Option, moves_of
from dspy_toolkit.serving.problems import Problem
from dspy_toolkit.settings import Settings
from tests.lm.openai_server import OpenAIServer
from tests.serving.conftest import fake, running, serving


def option(program: str, model: str, said: Any, asked: list[str] | None = None, seconds: float = 0) -> Option[str]:
    async def ask() -> str:
        if asked is not None:
            asked.append(program)
        await asyncio.sleep(seconds)
        if isinstance(said, Exception):
            raise said
        return said

    return Option(program, model, ask)


def run(chain: FallBack, *options: Option[str], seconds: float = 5) -> tuple[str, list[str]]:
    async def go() -> tuple[str, list[str]]:
        answer, moves = await chain.run(options, time.monotonic() + seconds)
        return answer, [str(move) for move in moves]

    return asyncio.run(go())


def test_the_first_that_can_answers_and_a_failed_model_is_out_for_the_request() -> None:
    asked: list[str] = []
    options = (
        option("p@2", "small", EngineFailed("no"), asked),
        option("p@1", "small", "never asked", asked),
        option("p@2", "large", "an answer", asked),
    )
    assert run(FallBack(), *options) == ("an answer", ["p@2 on small: model_failed"])
    assert asked == ["p@2", "p@2"]


def test_a_failing_program_leaves_its_model_to_the_one_before() -> None:
    options = option("p@2", "small", KeyError("a bug")), option("p@1", "small", "an answer")
    assert run(FallBack(), *options) == ("an answer", ["p@2 on small: program_failed"])


def test_a_bad_request_moves_nothing() -> None:
    chain, asked = FallBack(failures=1), []
    with pytest.raises(RequestRefused):
        run(chain, option("p@2", "small", RequestRefused("bad")), option("p@1", "small", "x", asked))
    assert not asked and set(chain.states().values()) <= {"closed"}


def test_a_breaker_opens_after_failures_in_a_row_and_tries_again_later() -> None:
    chain, asked = FallBack(failures=2, seconds=0.2), []
    bad = option("p@2", "small", KeyError("a bug"), asked)
    good = option("p@1", "small", "an answer")
    for _ in range(4):
        assert run(chain, bad, good)[0] == "an answer"
    assert len(asked) == 2 and chain.states()["program p@2"] == "open"
    with pytest.raises(Problem) as caught:
        run(chain, bad)
    assert (caught.value.code, caught.value.status) == ("breaker_open", 503)
    time.sleep(0.25)
    assert run(chain, option("p@2", "small", "again", asked))[0] == "again"
    assert chain.states()["program p@2"] == "closed" and len(asked) == 3


def test_time_is_shared_and_short_deadlines_of_clients_do_not_count() -> None:
    slow = option("p@2", "small", "late", seconds=2)
    chain = FallBack(failures=1, patience=10)
    answer, moves = run(chain, slow, option("p@1", "other", "in time"), seconds=0.4)
    assert (answer, moves) == ("in time", ["p@2 on small: deadline_exceeded"])
    assert set(chain.states().values()) <= {"closed"}
    with pytest.raises(TimeoutError):
        run(FallBack(), slow, seconds=0.05)


def test_who_did_not_answer_is_known_where_nobody_did() -> None:
    chain, moves = FallBack(failures=1), list[Move]()
    options = option("p@2", "small", KeyError("a bug")), option("p@1", "small", "late", seconds=2)

    def ask(moves: list[Move]) -> BaseException:
        with pytest.raises((TimeoutError, Problem)) as caught:
            asyncio.run(chain.run(options, time.monotonic() + 0.4, moves, "r1"))
        return caught.value

    first = ask(moves)
    assert isinstance(first, TimeoutError)
    assert [str(move) for move in moves] == ["p@2 on small: program_failed", "p@1 on small: deadline_exceeded"]
    assert moves_of(first) == moves and moves_of(KeyError("of somebody else")) == []
    again = list[Move]()
    second = ask(again)
    assert isinstance(second, Problem) and second.code == "breaker_open"
    assert [move.why for move in again] == ["breaker_open", "breaker_open"]
    assert moves_of(second) == again


def test_the_last_one_is_over_before_whoever_set_the_deadline_ends_the_whole() -> None:
    """Else nobody would be told which option was too slow, and no breaker would count it."""
    chain, moves = FallBack(failures=1), list[Move]()

    async def go() -> None:
        deadline = time.monotonic() + 0.5
        async with asyncio.timeout(deadline - time.monotonic()):
            await chain.run([option("p@1", "small", "late", seconds=2)], deadline, moves)

    for _ in range(3):
        with pytest.raises((TimeoutError, Problem)):
            asyncio.run(go())
    assert [move.why for move in moves] == ["deadline_exceeded", "breaker_open", "breaker_open"]


def test_over_http_what_happened_is_counted_and_logged_where_nobody_answers(
    promoted: Settings, save_questions: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    promote(promoted, "questions", save_questions("Say numbers."))
    settings, _ = fake(promoted, lambda _: "cut [[", check_grammar=False)
    with running(settings) as server:
        said = server.ask(text="Who?")
        metrics = server.http.get("/metrics").text
    assert (said.status_code, said.json()["error"]["code"]) == (502, "unreadable_reply")
    for version in (2, 1):
        counted = f'fallbacks_total{{option="questions@{version}",program="questions",why="unreadable_reply"}} 1.0'
        assert counted in metrics
    start = f"Request {said.json()['error']['request_id']}: "
    ours = [each.getMessage() for each in caplog.records if each.name == "dspy_toolkit.serving.fallback"]
    assert [line.removeprefix(start).partition(" (")[0] for line in ours] == [
        f"questions@{version} on {settings.lm.model}: unreadable_reply" for version in (2, 1)
    ]


def test_over_http_the_version_before_answers_and_says_so(
    promoted: Settings, save_questions: Callable[..., int]
) -> None:
    def reply(request: Any) -> Any:
        return "cut [[" if "numbers" in request.messages[0].content else {"label": "person"}

    promote(promoted, "questions", save_questions("Say numbers."))
    settings, _ = fake(promoted, reply, check_grammar=False)
    with running(settings) as server:
        said = server.ask(text="Who?")
        metrics = server.http.get("/metrics").text
        about = server.http.get("/v1/programs/questions").json()
    assert said.json()["version"] == 1 and said.json()["fell_back"] == [
        f"questions@2 on {settings.lm.model}: unreadable_reply"
    ]
    assert said.headers["x-fell-back"] == said.json()["fell_back"][0]
    assert 'fallbacks_total{option="questions@2",program="questions",why="unreadable_reply"} 1.0' in metrics
    assert about["falls_back_on"] == [f"questions@1 on {settings.lm.model}"]


def test_a_listed_model_answers_where_the_engine_fails(promoted: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer(lambda _: {"label": "number"}) as other:
        monkeypatch.setenv("OPENAI_API_BASE", other.address)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
        settings, _ = fake(promoted, [EngineFailed("the thread died")] * 4)
        with running(serving(settings, fall_back_on=("previous", "openai/other"))) as server:
            said = server.ask(text="How many?")
    assert said.status_code == 200, said.text
    assert said.json()["prediction"] == {"label": "number"} and said.json()["model"] == "openai/other"
    assert "model_failed" in said.headers["x-fell-back"]


def test_an_engine_whose_thread_dies_under_load_answers_the_next_request(promoted: Settings) -> None:
    settings, engine = fake(promoted, lambda _: {"label": "person"}, seconds_per_token=0.01)
    whole, left = engine._generate, [1]

    def dies_once(sequence: Any) -> Any:
        if left and "4" in sequence.request.messages[-1].content:
            left.pop()
            raise MemoryError("the thread is gone")
        return whole(sequence)

    def serve(self: Any) -> None:
        while self._wait_for_work():
            if (sequence := self._next()) is not None:
                self._finish([(sequence, dies_once(sequence))])

    engine._serve = serve.__get__(engine)  # type: ignore[method-assign]
    with running(serving(settings, fall_back_on=())) as server:

        async def many() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=server.address, timeout=60) as http:
                path = "/v1/programs/questions/predict"
                return await asyncio.gather(*(http.post(path, json={"text": f"row {n}"}) for n in range(8)))

        said = asyncio.run(many())
        after = server.ask(text="afterwards")
    assert {answer.status_code for answer in said} <= {200, 503}
    failed = [answer for answer in said if answer.status_code == 503]
    assert failed and all(answer.json()["error"]["code"] == "model_failed" for answer in failed)
    assert all("retry-after" in answer.headers for answer in failed)
    assert after.status_code == 200  # one fault is one for the breaker, however many it ended
