"""The engine on the architectures that people run, as tiny models: its greedy tokens are those of mlx_lm alone.

In batches, with prompts of several lengths, and from a prefix that is new, shared or kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.settings import LMSettings
from tests.lm.architectures import FAMILIES
from tests.lm.asking import send, settled, turns
from tests.lm.reference import Reference

RULES = "You classify. " + " ".join(f"Topic {n} is {n % 5}." for n in range(8))
ALONE = ("llama4",)
"""Their caches cannot be batched."""


@contextmanager
def opened(folder: Path, home: Path) -> Iterator[tuple[Engine, Reference]]:
    weights = find_weights(f"mlx/{folder}", home)
    engine, reference = Engine(weights, LMSettings(lease="share")), Reference(weights)
    try:
        yield engine, reference
    finally:
        engine.close()
        reference.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_mlx_lm_alone(
    architecture: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    with opened(architecture(family), tmp_path) as (engine, reference):
        prompts = [turns(f"Where is topic {n}{', please' * (n % 3)}?", RULES) for n in range(3)]
        prompts += [turns("Hello!"), turns("Tell me more. " * 6)]
        texts: set[str] = set()
        for _ in range(2):  # with a prefix that nobody has seen, and with one that is kept
            replies = [pending.result(120) for pending in [send(engine, prompt) for prompt in prompts]]
            for prompt, reply in zip(prompts, replies, strict=True):
                if reply.text not in texts:
                    reference.check(prompt, reply.text)
                    texts.add(reply.text)
        assert len(texts) > 2, "the replies hang on the prompts"
        reused = [reply.reused_tokens for reply in replies]
        assert min(reused[:3]) > 50, reused
        now = settled(engine)
        assert now.batched_rows / now.steps == 1 if family in ALONE else now.batched_rows / now.steps > 2
