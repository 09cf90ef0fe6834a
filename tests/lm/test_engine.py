"""The MLX engine itself: the same tokens as mlx_lm alone, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from asking import LENGTH, send, settled, turns

from dspy_toolkit.lm.engine import Engine
from dspy_toolkit.lm.weights import find_weights, load_model

TIE = 1e-3
"""Logits nearer than this to each other change places with the order of additions."""
SYSTEM = "You classify requests. " + " ".join(
    f"Rule {n}: requests about topic {n} go to desk {n % 5}." for n in range(12)
)


class Reference:
    """mlx_lm alone, one prompt after another, on one thread of its own.

    Not on the main thread: MLX's caches of compiled functions live as long as their thread, and outliving the interpreter
    they crash the process at its end.
    """

    def __init__(self, home: Path) -> None:
        self.pool = ThreadPoolExecutor(1)
        weights = find_weights("mlx/smollm2-135m", home)
        self.model, self.tokenizer = self.pool.submit(load_model, weights, "cpu").result()

    def close(self) -> None:
        import mlx.core as mx

        del self.model
        self.pool.submit(mx.clear_streams).result()
        self.pool.shutdown()

    def greedy(self, messages: list[dict[str, str]]) -> tuple[list[int], list[float]]:
        """(tokens, the distance between the best two logits at each)."""
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        tokens: list[int] = []
        gaps: list[float] = []
        for token, logprobs in generate_step(mx.array(prompt), self.model, max_tokens=LENGTH):
            if token in self.tokenizer.eos_token_ids:
                break
            best = mx.sort(logprobs)[-2:].tolist()
            tokens.append(int(token))
            gaps.append(best[1] - best[0])
        return tokens, gaps

    def check(self, messages: list[dict[str, str]], text: str) -> None:
        """`text` is the greedy reply, or leaves it where the best two tokens are as good as equal."""
        tokens, gaps = self.pool.submit(self.greedy, messages).result()
        decode = self.tokenizer.decode
        if text == decode(tokens, skip_special_tokens=True):
            return
        kept = next(n for n in range(len(tokens) + 1) if not text.startswith(decode(tokens[: n + 1])))
        print(f"{text!r} leaves {decode(tokens)!r} after {kept} tokens, where the best two are {gaps[kept]:.2g} apart")
        assert gaps[kept] < TIE


@pytest.fixture(scope="module")
def reference(model_home: Path) -> Iterator[Reference]:
    reference = Reference(model_home)
    yield reference
    reference.close()


def test_greedy_alone(engine: Engine, reference: Reference) -> None:
    messages = turns("What is the capital of France?")
    reply = send(engine, messages).result(60)
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"
    reference.check(messages, reply.text)


def test_greedy_in_a_batch_of_mixed_lengths(engine: Engine, reference: Reference) -> None:
    prompts = [turns("Count to five. " + "Take your time. " * n) for n in (0, 3, 25, 11, 1)]
    tickets = [send(engine, prompt) for prompt in prompts]
    for prompt, ticket in zip(prompts, tickets, strict=True):
        reference.check(prompt, ticket.result(120).text)


def test_greedy_after_a_shared_prefix(engine: Engine, reference: Reference) -> None:
    prompts = [turns(f"Where does a request about topic {n} go?", SYSTEM) for n in range(4)]
    send(engine, prompts[0]).result(60)  # alone, with nobody to share with; from now on its words are known
    others = [*prompts, turns("Hello!")]
    replies = [ticket.result(120) for ticket in [send(engine, prompt) for prompt in others]]
    assert all(reply.reused_tokens > 100 for reply in replies[:4])
    for prompt, reply in zip(others, replies, strict=True):
        reference.check(prompt, reply.text)


def test_greedy_under_a_grammar_beside_free_rows(engine: Engine, reference: Reference) -> None:
    free = turns("What is the capital of Italy?")
    tickets = [send(engine, turns("Pick."), grammar='start: "the answer is " ("red" | "blue")') for _ in range(3)]
    ticket = send(engine, free)
    replies = [t.result(60) for t in tickets]
    assert {reply.text for reply in replies} <= {"the answer is red", "the answer is blue"}
    assert len({reply.text for reply in replies}) == 1
    assert all(0 < reply.forced_tokens < reply.completion_tokens for reply in replies)
    reference.check(free, ticket.result(60).text)


def test_seed_is_reproducible_in_any_batch(engine: Engine) -> None:
    message = turns("Invent a name for a boat.")
    alone = send(engine, message, temperature=1.0, top_p=0.9, seed=7).result(60).text
    others = [send(engine, turns("Count. " * n), temperature=1.0, seed=n) for n in (2, 30, 9)]
    beside = send(engine, message, temperature=1.0, top_p=0.9, seed=7)
    different = [send(engine, message, temperature=1.0, seed=n) for n in range(3)]
    assert beside.result(60).text == alone
    assert len({ticket.result(60).text for ticket in different}) > 1
    for ticket in others:
        ticket.result(60)


def test_without_a_seed_each_draws_its_own(engine: Engine) -> None:
    tickets = [send(engine, turns("Invent a name for a boat."), temperature=1.5) for _ in range(4)]
    assert len({ticket.result(60).text for ticket in tickets}) > 1


def test_reply_dictated_to_its_end_needs_no_model(engine: Engine) -> None:
    before = settled(engine).decoded_tokens
    reply = send(engine, turns("x"), grammar='start: "only this"').result(60)
    assert (reply.text, reply.finish_reason) == ("only this", "stop")
    assert reply.forced_tokens == reply.completion_tokens > 0
    cut = send(engine, turns("x"), grammar='start: "only this and no more"', max_tokens=2).result(60)
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 2)
    assert "only this and no more".startswith(cut.text)
    assert settled(engine).decoded_tokens == before


def test_a_reply_cut_by_max_tokens_says_so(engine: Engine) -> None:
    reply = send(engine, turns("x"), grammar="start: /[a-z]{40,60}/", max_tokens=5).result(60)
    assert (reply.finish_reason, reply.completion_tokens) == ("length", 5)
