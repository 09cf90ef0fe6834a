"""Scored labels: each log-probability is that of one full pass over the label's own tokens, however it was computed.

Whatever the caches are, whoever is scored or decoded beside, and whatever was kept from earlier requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import DeadlineExceeded, EngineFailed, PromptTooLong
from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.engine.scoring import heads, plan
from dspy_toolkit.lm.models.weights import Weights, find_weights
from dspy_toolkit.lm.protocol import PendingReply, Reply
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import send, settled, turns
from tests.lm.reference import Reference
from tests.lm.tiny import Kind

RULES = "You classify requests. " + " ".join(f"Topic {n} goes to desk {n % 5}." for n in range(15))
CLOSE = 1e-3

PREFIX, SUFFIX = "[[ ## label ## ]]\n", "\n\n[[ ## completed ## ]]"
DESKS = ("billing", "billing dispute", "technical support", "technical sales", "returns", "other")
APART = ("technical support", "technical sales", "returns", "7", "12")
"""None begins with another: of each its own tokens alone are counted."""
NUMBERS = ("1", "12", "123", "-4", "2048")

Open = Callable[[Kind], tuple[Engine, "BruteForce"]]


class BruteForce(Reference):
    """One forward pass over a prompt and a whole reply, nothing cached, nothing batched."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.known: dict[str, tuple[float, int]] = {}

    def check(self, messages: list[dict[str, str]], reply: Reply, prefix: str, suffix: str) -> None:  # type: ignore[override]
        assert reply.label_logprobs is not None
        labels = [scored.label for scored in reply.label_logprobs]
        ended = ends_count(labels)
        for scored in reply.label_logprobs:
            expected, tokens = self.expect(messages, prefix, scored.label, suffix, ended=ended)
            assert scored.logprob == pytest.approx(expected, abs=CLOSE), scored
            assert scored.tokens == tokens
        best = max(reply.label_logprobs, key=lambda scored: scored.logprob)
        assert reply.text == f"{prefix}{best.label}{suffix}"

    def expect(self, messages: list[dict[str, str]], *texts: str, ended: bool) -> tuple[float, int]:
        """What `score` gives; the second time from memory."""
        key = repr((messages, texts, ended))
        if key not in self.known:
            self.known[key] = self.pool.submit(self.score, messages, *texts, ended).result()
        return self.known[key]

    def score(
        self, messages: list[dict[str, str]], prefix: str, label: str, suffix: str, ended: bool
    ) -> tuple[float, int]:
        """(log-probability of the label's tokens and, where `ended`, of what ends it; how many these are)."""
        import mlx.core as mx

        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        before, own, after = (self._encode(text) for text in (prefix, label, suffix))
        assert before + own + after == self._encode(f"{prefix}{label}{suffix}"), "a label that this test cannot cut out"
        tokens = prompt + before + own
        logits = self.model(mx.array([tokens]))[0, -len(own) - 1 :].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        total = sum(logprobs[at, token].item() for at, token in enumerate(own))
        if not ended:
            return total, len(own)
        ends = after[:1] or sorted(self.tokenizer.eos_token_ids)
        total += math.log(sum(math.exp(logprobs[-1, token].item()) for token in ends))
        return total, len(own) + 1

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def ends_count(labels: Any) -> bool:
    """Whether what ends a label is counted: one of them begins with another."""
    return any(one != other and other.startswith(one) for one in labels for other in labels)


def score(engine: Engine, messages: list[dict[str, str]], labels: Any, prefix: str = PREFIX, suffix: str = SUFFIX,
          **fields: Any) -> PendingReply:  # fmt: skip
    return send(engine, messages, label_scores={"prefix": prefix, "labels": labels, "suffix": suffix}, **fields)


@pytest.fixture
def open_tiny(tmp_path: Path, tiny: Callable[[Kind], Path]) -> Iterator[Open]:
    """An engine of a tiny model, and brute force on the same weights."""
    made: list[Engine | Reference] = []

    def open_tiny(kind: Kind) -> tuple[Engine, BruteForce]:
        weights = find_weights(f"mlx/{tiny(kind)}", tmp_path)
        engine, reference = Engine(weights, LMSettings(lease="share")), BruteForce(weights)
        made.extend([engine, reference])
        return engine, reference

    yield open_tiny
    for each in made:
        each.close()


@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_scores_are_those_of_a_full_pass_a_label(open_tiny: Open, kind: Kind) -> None:
    engine, brute = open_tiny(kind)
    prompt = turns("Where does topic 3 go?", RULES)
    asked = [(PREFIX, SUFFIX, (*DESKS, *NUMBERS)), ("", "", (*DESKS, *NUMBERS)), (PREFIX, "", ("yes",))]
    asked += [(PREFIX, SUFFIX, APART), ("", "", APART)]
    for prefix, suffix, labels in (*asked, ("", SUFFIX, ("No", "Yes"))):
        brute.check(prompt, score(engine, prompt, labels, prefix, suffix).result(60), prefix, suffix)


@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_neighbours_and_kept_prefixes_change_no_score(open_tiny: Open, kind: Kind) -> None:
    engine, brute = open_tiny(kind)
    prompts = [turns(f"Where does topic {n} go{', please' * (n % 3)}?", RULES) for n in range(6)]
    prompts += [turns("Hello!"), turns("Tell me more. " * 20)]
    lists = [DESKS, NUMBERS, APART]
    for _ in range(2):  # with a prefix that nobody has seen, and with one that is kept
        scored = [score(engine, prompt, lists[at % 3]) for at, prompt in enumerate(prompts)]
        decoded = [send(engine, prompt) for prompt in prompts]
        replies = [pending.result(60) for pending in scored]
        for prompt, reply in zip(prompts, replies, strict=True):
            brute.check(prompt, reply, PREFIX, SUFFIX)
        for prompt, pending in zip(prompts, decoded, strict=True):
            Reference.check(brute, prompt, pending.result(60).text)
    assert all(reply.reused_tokens > 100 for reply in replies[:6])
    now = settled(engine)
    assert now.scored_tokens > 0 and now.cache_bytes == 0


@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_labels_that_take_several_steps(open_tiny: Open, kind: Kind) -> None:
    """A step computes no more than a chunk, and no more rows than there is memory for; others go on in between."""
    engine, brute = open_tiny(kind)
    labels = [f"topic {n}{' and more' * (n % 3)}" for n in range(40)]
    score(engine, turns("Hello!"), labels).result(60)  # the model is loaded
    assert engine._batch is not None
    engine._batch.base._chunk = 48
    story = send(engine, turns("Tell me a story.", RULES), max_tokens=40)
    scored = [score(engine, turns(f"Where does topic {n} go?", RULES), labels) for n in range(3)]
    replies = [pending.result(60) for pending in scored]
    engine._batch.base._chunk = 512
    engine._batch.base._room = lambda: 0.0  # one row at a time
    again = score(engine, turns("Where does topic 1 go?", RULES), labels).result(60)
    assert story.result(60).completion_tokens > 0
    for n in (0, 39):
        prompt = turns("Where does topic 1 go?", RULES)
        expected, _ = brute.expect(prompt, PREFIX, labels[n], SUFFIX, ended=True)
        for reply in (replies[1], again):
            assert reply.label_logprobs is not None
            assert reply.label_logprobs[n].logprob == pytest.approx(expected, abs=CLOSE)
    assert settled(engine).steps >= 3


def test_cancelling_and_deadlines_while_labels_are_scored(open_tiny: Open) -> None:
    engine, _ = open_tiny("llama")
    labels = [f"topic {n} and so on" for n in range(300)]
    score(engine, turns("Hello!"), ("yes", "no")).result(60)
    assert engine._batch is not None
    engine._batch.base._chunk = 8  # one label a step
    began = time.monotonic()
    late = score(engine, turns("Hello!"), labels, deadline_seconds=0.3)
    given_up, other = score(engine, turns("Hello!"), labels), score(engine, turns("Hello!"), labels)
    while not (engine._batch.base._scoring.sequences or late.future.done()):
        assert time.monotonic() - began < 30
        time.sleep(0.005)
    given_up.cancel()
    with pytest.raises(DeadlineExceeded):
        late.result(60)
    with pytest.raises(CancelledError):
        given_up.result(60)
    engine._batch.base._chunk = 512
    assert len(other.result(60).label_logprobs or ()) == 300
    now = settled(engine)
    assert (now.failed, now.cancelled, now.cache_bytes) == (1, 1, 0)


def test_an_exception_while_labels_are_scored_ends_what_runs_and_no_more(
    open_tiny: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspy_toolkit.lm.engine.scoring import Scoring

    engine, brute = open_tiny("llama")
    with monkeypatch.context() as patch:
        patch.setattr(Scoring, "_read", lambda *given: 1 / 0)
        with pytest.raises(EngineFailed, match="ZeroDivisionError"):
            score(engine, turns("Hello!"), DESKS).result(60)
    brute.check(turns("Hello!"), score(engine, turns("Hello!"), DESKS).result(60), PREFIX, SUFFIX)


def test_many_threads(open_tiny: Open) -> None:
    engine, brute = open_tiny("llama")

    def work(n: int) -> Reply:
        labels = NUMBERS if n % 2 else DESKS
        return score(engine, turns(f"Where does topic {n % 8} go?", RULES), labels).result(60)

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(work, range(32)))
    for n in range(8):
        brute.check(turns(f"Where does topic {n} go?", RULES), replies[n], PREFIX, SUFFIX)
        for later in replies[n + 8 :: 8]:
            first = [each.logprob for each in replies[n].label_logprobs or ()]
            assert [each.logprob for each in later.label_logprobs or ()] == pytest.approx(first, abs=CLOSE)
    assert settled(engine).finished == 32


def test_a_reply_says_what_it_cost(open_tiny: Open) -> None:
    engine, brute = open_tiny("llama")
    reply = score(engine, turns("Hello!"), DESKS, max_tokens=1).result(60)  # which does not matter
    text = list(brute.tokenizer.encode(reply.text, add_special_tokens=False))
    best = max(reply.label_logprobs or (), key=lambda scored: scored.logprob)
    assert (reply.finish_reason, reply.completion_tokens) == ("stop", len(text))
    assert reply.forced_tokens == len(text) - best.tokens
    assert reply.logprobs is None
    assert "".join(score(engine, turns("Hello!"), DESKS)) == reply.text
    total = sum(math.exp(scored.logprob) for scored in reply.label_logprobs or ())
    assert 0 < total <= 1.0001
    with pytest.raises(PromptTooLong):
        score(engine, turns("word " * 2040), ("yes", "no"))


# Passes

paths = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), max_size=4)).map(lambda pair: (pair[0], *pair[1])),
    min_size=1,
    max_size=12,
)


@given(paths, st.integers(0, 40))
def test_passes_visit_every_place_at_the_least_cost(paths: list[tuple[int, ...]], pass_cost: int) -> None:
    def cost(passes: list[tuple[int, int]]) -> int:
        return sum(pass_cost + (end - begin) * len(heads(paths, begin, end)) for begin, end in passes)

    passes = plan(paths, pass_cost)
    deepest = max(map(len, paths))
    assert [begin for begin, _ in passes] == [0, *(end for _, end in passes[:-1])]
    assert passes[-1][1] == deepest
    visited = {
        path[:depth]
        for begin, end in passes
        for path in heads(paths, begin, end)
        for depth in range(begin + 1, len(path) + 1)
    }
    assert visited == {path[:depth] for path in paths for depth in range(1, len(path) + 1)}
    for begin, end in passes:  # a row goes on from one of the pass before
        assert all(begin < len(path) <= end for path in heads(paths, begin, end))
    assert cost(passes) <= min(cost([(0, deepest)]), cost([(depth, depth + 1) for depth in range(deepest)]))
