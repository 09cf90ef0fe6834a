"""What the tests of the engines have in common."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dspy_toolkit.lm.protocol import EngineStats, GenerationRequest, PendingReply, TextEngine, make_request

HELLO = [{"role": "user", "content": "Say hello."}]
LENGTH = 10
"""Tokens of a reply, where nothing else is asked for."""
STORY = "Tell me a long story about a lighthouse."


def ask(text: str = STORY, **fields: Any) -> GenerationRequest:
    return make_request(messages=[{"role": "user", "content": text}], **fields)


def settled(engine: TextEngine, seconds: float = 30) -> EngineStats:
    """The counters once nothing runs or waits any more."""
    end = time.monotonic() + seconds
    while (now := engine.stats()).active or now.queued:
        assert time.monotonic() < end, now
        time.sleep(0.02)
    assert now.requests == now.finished + now.failed + now.cancelled
    return now


def turns(user: str, system: str | None = None) -> list[dict[str, str]]:
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": user}]


def send(engine: TextEngine, messages: list[dict[str, str]], **fields: Any) -> PendingReply:
    return engine.submit(make_request(**{"messages": messages, "max_tokens": LENGTH, **fields}))


def needs_torch() -> None:
    """Skip the test where the extra `torch` is not installed."""
    from dspy_toolkit.lm.models.hardware import torch_installed
    from dspy_toolkit.lm.torch.weights import INSTALL

    if not torch_installed():
        pytest.skip(f"torch is not installed. {INSTALL} `make test-system` brings a CPU build of its own.")
