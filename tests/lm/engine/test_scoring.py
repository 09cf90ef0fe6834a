"""Scored labels: each log-probability is that of one full pass over the label's own tokens, however it was computed.

Whatever the caches are, whoever is scored or decoded beside, and whatever was kept from earlier requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.lm.protocol import PendingReply, Reply
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import send, settled, turns
from tests.lm.reference import Reference
from tests.lm.tiny import Kind

RULES = "You classify requests. " + " ".join(f"Topic {n} goes to desk {n % 5}." for n in range(15))
CLOSE = 1e-3

PREFIX, SUFFIX = "[[ ## label ## ]]\n", "\n\n[[ ## completed ## ]]"
DESKS = ("billing", "billing dispute", "technical support", "technical sales", "returns", "other")
NUMBERS = ("1", "12", "123", "-4", "2048")

Open = Callable[[Kind], tuple[Engine, "BruteForce"]]


class BruteForce(Reference):
    """One forward pass over a prompt and a whole reply, nothing cached, nothing batched."""

    def check(self, messages: list[dict[str, str]], reply: Reply, prefix: str, suffix: str) -> None:  # type: ignore[override]
        assert reply.label_logprobs is not None
        for scored in reply.label_logprobs:
            expected, tokens = self.pool.submit(self.score, messages, prefix, scored.label, suffix).result()
            assert scored.logprob == pytest.approx(expected, abs=CLOSE), scored
            assert scored.tokens == tokens
        best = max(reply.label_logprobs, key=lambda scored: scored.logprob)
        assert reply.text == f"{prefix}{best.label}{suffix}"

    def score(self, messages: list[dict[str, str]], prefix: str, label: str, suffix: str) -> tuple[float, int]:
        """(log-probability of the label's tokens and of what ends it, how many these are)."""
        import mlx.core as mx

        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        before, own, after = (self._encode(text) for text in (prefix, label, suffix))
        assert before + own + after == self._encode(f"{prefix}{label}{suffix}"), "a label that this test cannot cut out"
        tokens = prompt + before + own
        logits = self.model(mx.array([tokens]))[0, -len(own) - 1 :].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        total = sum(logprobs[at, token].item() for at, token in enumerate(own))
        ends = after[:1] or sorted(self.tokenizer.eos_token_ids)
        total += math.log(sum(math.exp(logprobs[-1, token].item()) for token in ends))
        return total, len(own) + 1

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


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
    for prefix, suffix in ((PREFIX, SUFFIX), ("", ""), (PREFIX, ""), ("", SUFFIX)):
        for labels in (DESKS, NUMBERS, ("yes",), ("No", "Yes")):
            brute.check(prompt, score(engine, prompt, labels, prefix, suffix).result(60), prefix, suffix)


@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_neighbours_and_kept_prefixes_change_no_score(open_tiny: Open, kind: Kind) -> None:
    engine, brute = open_tiny(kind)
    prompts = [turns(f"Where does topic {n} go{', please' * (n % 3)}?", RULES) for n in range(6)]
    prompts += [turns("Hello!"), turns("Tell me more. " * 20)]
    lists = [DESKS, NUMBERS, ("yes",)]
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
