"""The MLX engine itself: the same tokens as mlx_lm alone, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.engine.sequence import Sequence
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import send, settled, turns
from tests.lm.reference import Reference

SYSTEM = "You classify requests. " + " ".join(
    f"Rule {n}: requests about topic {n} go to desk {n % 5}." for n in range(12)
)


@pytest.fixture(scope="module")
def reference(model_home: Path) -> Iterator[Reference]:
    reference = Reference(find_weights("mlx/smollm2-135m", model_home))
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
    sent = [send(engine, prompt) for prompt in prompts]
    for prompt, pending in zip(prompts, sent, strict=True):
        reference.check(prompt, pending.result(120).text)


def test_greedy_after_a_shared_prefix(engine: Engine, reference: Reference) -> None:
    prompts = [turns(f"Where does a request about topic {n} go?", SYSTEM) for n in range(4)]
    send(engine, prompts[0]).result(60)  # alone, with nobody to share with; from now on its words are known
    others = [*prompts, turns("Hello!")]
    replies = [pending.result(120) for pending in [send(engine, prompt) for prompt in others]]
    assert all(reply.reused_tokens > 100 for reply in replies[:4])
    for prompt, reply in zip(others, replies, strict=True):
        reference.check(prompt, reply.text)


def test_greedy_under_a_grammar_beside_free_text(engine: Engine, reference: Reference) -> None:
    free = turns("What is the capital of Italy?")
    sent = [send(engine, turns("Pick."), grammar='start: "the answer is " ("red" | "blue")') for _ in range(3)]
    pending = send(engine, free)
    replies = [t.result(60) for t in sent]
    assert {reply.text for reply in replies} <= {"the answer is red", "the answer is blue"}
    assert len({reply.text for reply in replies}) == 1
    assert all(0 < reply.forced_tokens < reply.completion_tokens for reply in replies)
    reference.check(free, pending.result(60).text)


def test_seed_is_reproducible_in_any_batch(engine: Engine) -> None:
    message = turns("Invent a name for a boat.")
    alone = send(engine, message, temperature=1.0, top_p=0.9, seed=7).result(60).text
    others = [send(engine, turns("Count. " * n), temperature=1.0, seed=n) for n in (2, 30, 9)]
    beside = send(engine, message, temperature=1.0, top_p=0.9, seed=7)
    different = [send(engine, message, temperature=1.0, seed=n) for n in range(3)]
    assert beside.result(60).text == alone
    assert len({pending.result(60).text for pending in different}) > 1
    for pending in others:
        pending.result(60)


def test_without_a_seed_each_draws_its_own(engine: Engine) -> None:
    sent = [send(engine, turns("Invent a name for a boat."), temperature=1.5) for _ in range(4)]
    assert len({pending.result(60).text for pending in sent}) > 1


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


RECORD = """start: "{\\"rank\\":" RANK ",\\"bias\\":\\"" BIAS "\\",\\"steps\\":" RANK ",\\"why\\":\\"" /[a-z ]{3,20}/ "\\"}"
RANK: "1" | "2" | "4" | "8" | "16" | "32" | "64"
BIAS: "none" | "all" | "lora_only"
"""


def test_dictated_tokens_change_no_reply(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model is not asked is what it would have had to say: plain masked decoding gives the same texts."""
    prompts = [
        turns(f"Configure run {n} for {what}.") for n, what in enumerate(["speed", "quality", "a small machine"])
    ]
    sent = [send(engine, prompt, grammar=RECORD, max_tokens=80) for prompt in prompts]
    replies = [pending.result(120) for pending in sent]
    monkeypatch.setattr(Sequence, "_force", lambda row: [])
    for prompt, reply in zip(prompts, replies, strict=True):
        plain = send(engine, prompt, grammar=RECORD, max_tokens=80).result(120)
        assert (reply.text, reply.finish_reason) == (plain.text, "stop")
        assert plain.forced_tokens == 0
        assert reply.forced_tokens > 10


def test_dictated_tokens_in_the_middle_take_no_steps_of_their_own(engine: Engine) -> None:
    before = settled(engine)
    sent = [send(engine, turns(f"Configure run {n}."), grammar=RECORD, max_tokens=80) for n in range(4)]
    replies = [pending.result(120) for pending in sent]
    chosen = [reply.completion_tokens - reply.forced_tokens for reply in replies]
    steps = settled(engine).steps - before.steps
    # Rows that the engine admits one after the other do not move in step; half a dozen more allows for that.
    assert steps <= 2 * max(chosen) + 6 < sum(reply.completion_tokens for reply in replies)


def test_a_choice_is_over_with_its_first_telling_token(engine: Engine) -> None:
    send(engine, turns("x")).result(60)
    before = settled(engine)
    grammar = (
        'start: "[[ ## answer ## ]]\\n" ("photosynthesis in plants" | "the water cycle") "\\n\\n[[ ## completed ## ]]"'
    )
    reply = send(engine, turns("Pick."), grammar=grammar, max_tokens=40).result(60)
    assert reply.completion_tokens - reply.forced_tokens == 1
    assert settled(engine).steps - before.steps == 1


def test_prefixes_in_eight_bits_take_less_and_serve_as_well(model_home: Path) -> None:
    engine = Engine(find_weights("mlx/smollm2-135m", model_home), LMSettings(lease="share", kv_bits=8))
    try:
        prompts = [turns(f"Where does a request about topic {n} go?", SYSTEM) for n in range(3)]
        replies = [pending.result(120) for pending in [send(engine, prompt) for prompt in prompts]]
        replies.append(send(engine, prompts[0]).result(120))
        assert sum(reply.reused_tokens > 100 for reply in replies) >= 3
        assert all(reply.text for reply in replies)
        # Of two prefixes or three: of the first row's whole prompt, of what all share, of the prompt that came twice.
        assert 0 < settled(engine).prefix_bytes < 3 * 0.3 * 46080 * replies[0].prompt_tokens
    finally:
        engine.close()
