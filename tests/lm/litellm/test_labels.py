"""Scored labels through LiteLLM and `dspy.LM`: OpenAI's names, DSPy's caches, the meter, threads and event loops."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import litellm
import pytest

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm import Connection, root_error
from dspy_toolkit.testing import fake_connection, fake_engine
from tests.lm.asking import HELLO

SCORES: dict[str, Any] = {
    "prefix": "[[ ## label ## ]]\n",
    "labels": ["billing", "billing dispute", "other"],
    "suffix": "\n\n[[ ## completed ## ]]",
}
SAID = {"billing": 0.25, "billing dispute": 0.7, "other": 0.05}
REPLY = "[[ ## label ## ]]\nbilling dispute\n\n[[ ## completed ## ]]"


def probabilities(logprobs: Any) -> dict[str, float]:
    (only,) = logprobs.content
    assert only.logprob == max(top.logprob for top in only.top_logprobs)
    assert only.token == next(top.token for top in only.top_logprobs if top.logprob == only.logprob)
    assert all(bytes(top.bytes).decode() == top.token for top in only.top_logprobs)
    return {top.token: math.exp(top.logprob) for top in only.top_logprobs}


@pytest.mark.parametrize("drop", [False, True])
def test_one_choice_with_all_labels(tmp_path: Path, drop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "drop_params", drop)
    connection = fake_connection([SAID, SAID], tmp_path)
    asked: dict[str, Any] = {"model": connection.model, "messages": HELLO, "label_scores": SCORES, "temperature": 0.9}
    for response in (litellm.completion(**asked), asyncio.run(litellm.acompletion(**asked))):
        (choice,) = response.choices  # type: ignore[union-attr]
        assert (choice.message.content, choice.finish_reason) == (REPLY, "stop")
        assert probabilities(choice.logprobs) == pytest.approx(SAID)
        assert list(probabilities(choice.logprobs)) == SCORES["labels"]
        assert [top.tokens for top in choice.logprobs.content[0].top_logprobs] == [2, 3, 2]


def test_streaming(tmp_path: Path) -> None:
    connection = fake_connection([SAID], tmp_path)
    stream: Any = litellm.completion(model=connection.model, messages=HELLO, label_scores=SCORES, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == REPLY
    (logprobs,) = [found for chunk in chunks if (found := getattr(chunk.choices[0], "logprobs", None))]
    assert probabilities(logprobs) == pytest.approx(SAID)


def test_dspy_keeps_scores_in_memory_and_on_disk(tmp_path: Path) -> None:
    other = {**SCORES, "labels": ["billing", "other"]}
    connection = fake_connection([SAID, "other"], tmp_path)
    lm = connection.lm
    asked = fake_engine(connection).requests
    for round_ in range(3):
        if round_ == 2:
            dspy.cache.memory_cache.clear()
        for scores, said in ((SCORES, SAID), (other, {"billing": 1e-6, "other": 1 - 1e-6})):
            (output,) = lm(HELLO[0]["content"], label_scores=scores, logprobs=True)
            assert probabilities(output["logprobs"]) == pytest.approx(said)
            # What ends a label is counted where one begins with another.
            assert output["logprobs"].content[0].top_logprobs[0].tokens == (2 if scores is SCORES else 1)
        assert output["text"].splitlines()[1] == "other"
    assert len(asked) == 2
    assert (lm.meter.usage.lm_calls, lm.meter.usage.physical_calls) == (6, 2)


def test_async_calls(tmp_path: Path) -> None:
    connection = fake_connection(lambda request: SAID, tmp_path)

    async def ask() -> list[Any]:
        calls = [connection.lm.acall(f"{n}?", label_scores=SCORES, logprobs=True) for n in range(6)]
        return await asyncio.gather(*calls)

    for _ in range(2):  # the second time from the cache
        for (output,) in asyncio.run(ask()):
            assert output["text"] == REPLY
            assert probabilities(output["logprobs"]) == pytest.approx(SAID)
    usage = connection.lm.meter.usage
    assert (usage.lm_calls, usage.physical_calls, len(fake_engine(connection).requests)) == (12, 6, 6)


def test_a_bad_list_of_labels_is_one_clear_error(tmp_path: Path) -> None:
    lm = fake_connection([], tmp_path).lm
    with pytest.raises(Exception, match="a label comes twice: 'a'") as caught:
        lm(HELLO[0]["content"], label_scores={"labels": ["a", "a"]})
    assert isinstance(root_error(caught.value), RequestRefused)


def test_the_real_engine_from_eight_threads(connection: Connection) -> None:
    def ask(n: int) -> dict[str, float]:
        question = f"My invoice number {n % 4} is wrong. Is this billing, or what?"
        (output,) = connection.lm(question, label_scores=SCORES, logprobs=True, cache=False)
        found = probabilities(output["logprobs"])
        assert output["text"] == f"{SCORES['prefix']}{max(found, key=found.__getitem__)}{SCORES['suffix']}"
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(16)))
    for n, each in enumerate(found):
        assert 0 < sum(each.values()) <= 1
        assert list(each) == SCORES["labels"]
        assert list(each.values()) == pytest.approx(list(found[n % 4].values()), rel=1e-3)
