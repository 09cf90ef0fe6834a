"""The engine on models that the embedded one is not: sliding windows, caches that cannot be cut.

Whatever the caches are, and however much of a prompt was shared, the tokens are those of mlx_lm alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import send, settled, turns
from tests.lm.reference import Reference
from tests.lm.tiny import Kind

RULES = "You classify requests. " + " ".join(f"Topic {n} goes to desk {n % 5}." for n in range(15))

Open = Callable[[Kind], tuple[Engine, Reference]]


@pytest.fixture
def open_tiny(tmp_path: Path, tiny: Callable[[Kind], Path]) -> Iterator[Open]:
    """An engine of a tiny model, and mlx_lm alone on the same weights."""
    made: list[Engine | Reference] = []

    def open_tiny(kind: Kind) -> tuple[Engine, Reference]:
        weights = find_weights(f"mlx/{tiny(kind)}", tmp_path)
        engine, reference = Engine(weights, LMSettings(lease="share")), Reference(weights)
        made.extend([engine, reference])
        return engine, reference

    yield open_tiny
    for each in made:
        each.close()


@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_greedy_tokens_are_those_of_mlx_lm_alone(open_tiny: Open, kind: Kind) -> None:
    engine, reference = open_tiny(kind)
    prompts = [turns(f"Where does topic {n} go{', please' * (n % 3)}?", RULES) for n in range(6)]
    prompts += [turns("Hello!"), turns("Tell me more. " * 20)]
    for _ in range(2):  # with a prefix that nobody has seen, and with one that is kept
        replies = [pending.result(120) for pending in [send(engine, prompt) for prompt in prompts]]
        for prompt, reply in zip(prompts, replies, strict=True):
            reference.check(prompt, reply.text)
    assert all(reply.reused_tokens > 100 for reply in replies[:6])
    now = settled(engine)
    assert now.computed_tokens - now.padding_tokens + now.reused_tokens >= now.prompt_tokens - now.finished
    assert now.padding_tokens <= 0.15 * now.computed_tokens


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_a_prefix_is_computed_once_for_many_sequences(open_tiny: Open, kind: Kind) -> None:
    engine, _ = open_tiny(kind)
    send(engine, turns("Hello!")).result(60)  # the model is loaded
    before = settled(engine)
    prompts = [turns(f"Where does topic {n} go?", RULES) for n in range(12)]
    replies = [pending.result(120) for pending in [send(engine, prompt) for prompt in prompts]]
    now = settled(engine)
    asked, computed = now.prompt_tokens - before.prompt_tokens, now.computed_tokens - before.computed_tokens
    one = replies[0].prompt_tokens
    assert asked >= 12 * 150
    # Twice at the most: by a row that came alone, and for all that came while it was read.
    assert computed < 2 * one + 12 * 40
    assert sum(reply.reused_tokens > 100 for reply in replies) >= 11


def test_prompts_that_differ_inside_a_message_share_up_to_its_start(open_tiny: Open) -> None:
    """Of caches that cannot be cut, the next prompt can use only what ends where it still agrees: whole messages."""
    engine, reference = open_tiny("hybrid")
    first = [turns(f"Where does topic {n} go?", RULES) for n in (1, 2, 3)]
    for pending in [send(engine, prompt) for prompt in first]:
        pending.result(60)
    before = settled(engine)
    other = turns("How is the weather?", RULES)
    reply = send(engine, other).result(60)
    assert reply.reused_tokens > 100
    assert settled(engine).computed_tokens - before.computed_tokens < 40, "the rules were not read again"
    reference.check(other, reply.text)


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
@pytest.mark.parametrize("bits", [None, 8])
def test_prompts_that_share_are_answered_with_no_room_to_keep_what_they_share(
    open_tiny: Open, kind: Kind, bits: Any
) -> None:
    engine, reference = open_tiny(kind)
    engine._plan = engine._plan.model_copy(update={"prefix_budget_bytes": 0, "kv_bits": bits})
    prompts = [turns(f"Where does topic {n} go?", RULES) for n in range(6)]
    replies = [pending.result(60) for pending in [send(engine, prompt) for prompt in prompts]]
    for prompt, reply in zip(prompts, replies, strict=True):
        reference.check(prompt, reply.text)
    assert sum(reply.reused_tokens > 100 for reply in replies) >= 4
    assert settled(engine).prefix_bytes == 0
