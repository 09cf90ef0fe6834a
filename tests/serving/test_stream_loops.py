"""Predictors that run more than once in one request: each run's fields by its number, in order, as they grow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import httpx
import pytest
from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices

from dspy_toolkit.serving.streaming import FieldStream
from dspy_toolkit.settings import Settings
from dspy_toolkit.testing import format_reply
from tests.lm.openai_server import OpenAIServer
from tests.serving.conftest import fake, running, serving

LOOPS = '''
import asyncio
import dspy
from dspy.utils.exceptions import AdapterParseError
from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.project import Project


class Loop(dspy.Module):
    """A draft, and three rounds over it."""

    def __init__(self):
        super().__init__()
        self.draft = dspy.Predict("text -> answer")
        self.better = dspy.Predict("before, round: int -> answer, marks: int")

    async def aforward(self, text):
        said = await self.draft.acall(text=text)
        for number in self.rounds:
            said = await self.better.acall(before=said.answer if number else text, round=number)
        return said

    def forward(self, text):
        said = self.draft(text=text)
        for number in self.rounds:
            said = self.better(before=said.answer if number else text, round=number)
        return said

    rounds = (1, 2, 3)


class Again(Loop):
    """Its last round asks what its first one asked, so that the cache answers; between them is another."""

    rounds = (0, 1, 0)


class Slow(Loop):
    """Without an aforward of its own."""

    def forward(self, text):
        return super().forward(text)


class Stubborn(dspy.Module):
    """Asks again where the reply cannot be read."""

    def __init__(self):
        super().__init__()
        self.write = dspy.Predict("text -> answer, marks: int")

    async def aforward(self, text):
        try:
            return await self.write.acall(text=text)
        except AdapterParseError:
            return await self.write.acall(text=text + ", please")

    def forward(self, text):
        return self.write(text=text)


class Both(dspy.Module):
    """Two runs of one predictor at the same time."""

    def __init__(self):
        super().__init__()
        self.write = dspy.Predict("text -> answer")

    async def aforward(self, text):
        left, right = await asyncio.gather(self.write.acall(text=text + " left"), self.write.acall(text=text + " right"))
        return dspy.Prediction(answer=left.answer + " / " + right.answer)

    def forward(self, text):
        return self.write(text=text)


def project_of(name, made):
    spec = DatasetSpec(source="rows.csv", inputs=("text",), outputs=("answer",))
    return Project(name=name, summary="Write", program=made, metric=exact_match, dataset=spec)


loop, again, slow, both, stubborn = (
    project_of(made.__name__.lower(), made) for made in (Loop, Again, Slow, Both, Stubborn)
)
'''


@pytest.fixture
def loops(tmp_path: Path) -> Path:
    path = tmp_path / "loops.py"
    path.write_text(LOOPS)
    return path


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def streamed(settings: Settings, loops: Path, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The fields' events of one request, and its whole reply."""
    settings = serving(settings, programs=(f"{loops}:{name}",))
    with running(settings) as server, server.http.stream(
        "POST", f"/v1/programs/{name}/stream", json={"text": "go"}
    ) as response:  # fmt: skip
        found = list(events(response))
    assert found[-1][0] == "prediction", found[-1]
    return [data for kind, data in found if kind == "field"], found[-1][1]


def by_run(fields: list[dict[str, Any]], predictor: str) -> dict[int, dict[str, str]]:
    """Run → field → its text."""
    joined: dict[int, dict[str, str]] = {}
    for each in fields:
        if each["predictor"] == predictor:
            run = joined.setdefault(each["run"], {})
            run[each["field"]] = run.get(each["field"], "") + each["text"]
    return joined


def reply(request: Any) -> dict[str, Any]:
    """The answer names its round, so that each round asks something else."""
    asked = request.messages[-1].content
    if "## round ##" not in asked:
        return {"answer": "a first draft of it"}
    number = int(asked.partition("[[ ## round ## ]]\n")[2].split()[0])
    return {"answer": f"round {number} " + "word " * 6 + "end", "marks": number * 10}


def test_each_round_of_a_loop_streams_anew_under_its_number(promoted: Settings, loops: Path) -> None:
    settings, engine = fake(promoted, reply, seconds_per_token=0.01)
    fields, whole = streamed(settings, loops, "loop")
    assert len(engine.requests) == 4 and not whole["cached"]
    assert by_run(fields, "draft") == {1: {"answer": "a first draft of it"}}
    rounds = by_run(fields, "better")
    assert rounds == {n: {"answer": f"round {n} " + "word " * 6 + "end", "marks": f"{n * 10}"} for n in (1, 2, 3)}
    assert whole["prediction"] == {"answer": rounds[3]["answer"], "marks": 30}
    order = [each["run"] for each in fields if each["predictor"] == "better"]
    assert order == sorted(order) and all(order.count(number) > 4 for number in (1, 2, 3)), "each of them grows"


def test_a_round_that_the_cache_answers_has_its_number_too(promoted: Settings, loops: Path) -> None:
    settings, engine = fake(promoted, reply, seconds_per_token=0.01)
    fields, whole = streamed(settings, loops, "again")
    assert len(engine.requests) == 3 and whole["usage"]["lm_calls"] == 4
    rounds = by_run(fields, "better")
    assert [rounds[number]["answer"].split()[1] for number in (1, 2, 3)] == ["0", "1", "0"]
    assert rounds[3] == rounds[1] and whole["prediction"]["answer"] == rounds[3]["answer"]
    assert sum(each["run"] == 3 for each in fields) == 2, "a field in one piece"


def test_the_rounds_of_a_program_without_aforward_come_whole_and_in_order(promoted: Settings, loops: Path) -> None:
    settings, _ = fake(promoted, reply)
    fields, whole = streamed(settings, loops, "slow")
    assert [(each["predictor"], each["run"], each["field"]) for each in fields] == [
        ("draft", 1, "answer"),
        *(("better", number, field) for number in (1, 2, 3) for field in ("answer", "marks")),
    ]
    assert fields[-2]["text"] == whole["prediction"]["answer"]


def test_two_runs_at_once_have_a_number_each(promoted: Settings, loops: Path) -> None:
    def side(request: Any) -> dict[str, Any]:
        return {"answer": ("left " if "left" in request.messages[-1].content else "right ") * 6 + "end"}

    settings, _ = fake(promoted, side, seconds_per_token=0.01)
    fields, whole = streamed(settings, loops, "both")
    assert {run["answer"] for run in by_run(fields, "write").values()} == {"left " * 6 + "end", "right " * 6 + "end"}
    assert whole["prediction"]["answer"].endswith("right end")


def test_pieces_of_two_replies_that_alternate_do_not_mix() -> None:
    """As an engine that writes several replies side by side sends them; the fake writes one after the other."""
    program, found = dspy.Predict("text -> answer"), []
    stream = FieldStream(program, lambda name, data: found.append(data))
    pieces = ["[[ ##", " answer", " ## ]]\n", "{0} one", " {0} two", "\n\n[[ ##", " completed", " ## ]]"]
    trace: list[Any] = []

    async def send() -> None:
        for piece in pieces:
            for side in ("left", "right"):
                delta = Delta(role="assistant", content=piece.format(side))
                chunk: Any = ModelResponseStream(id=side, choices=[StreamingChoices(index=0, delta=delta)])
                chunk.predict_id = id(program)
                await stream.send(chunk)

    with dspy.context(trace=trace):
        asyncio.run(send())
        trace += [(program, {}, dspy.Prediction(answer=f"{side} one {side} two")) for side in ("right", "left")]
    stream.finish(trace)
    assert by_run(found, "self") == {n: {"answer": f"{side} one {side} two"} for n, side in ((1, "left"), (2, "right"))}


def test_a_run_that_failed_is_not_continued_by_the_next(promoted: Settings, loops: Path) -> None:
    """A remote model's first reply has no number of marks, and the program asks again."""
    left = [format_reply({"answer": "half of an answer", "marks": "none"})]

    with OpenAIServer(lambda _: left.pop() if left else {"answer": "a whole answer", "marks": 7}) as remote:
        lm = promoted.lm.model_copy(update={"model": "openai/NAME", "api_base": remote.address})
        settings = serving(promoted.model_copy(update={"lm": lm}), fall_back_on=())
        fields, whole = streamed(settings, loops, "stubborn")
    assert len(remote.received) == 2, "every reply of this server has the same id"
    assert by_run(fields, "write") == {
        1: {"answer": "half of an answer", "marks": "none"},
        2: {"answer": "a whole answer", "marks": "7"},
    }
    assert whole["prediction"] == {"answer": "a whole answer", "marks": 7}
