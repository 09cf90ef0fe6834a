"""What every system that is measured has: how it is called, and what it is told of the model and the machine."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import dspy

from dspy_toolkit.lm.meter import MeteredLM

Messages = list[dict[str, str]]


class Answer(NamedTuple):
    """A native reply."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Place:
    """What every system needs to know of the model and the machine."""

    home: Path
    model: str
    """As settings name it."""
    folder: Path
    """The weights as peers on MLX load them."""
    gguf: Path | None
    threads: int
    """Of a peer that has to be told."""
    log: Path
    """Where a server's own output goes."""


class System(Protocol):
    """One way of running the model."""

    def lm(self, max_tokens: int) -> tuple[MeteredLM, dspy.Adapter]:
        """For `dspy.context`; greedy, uncached."""
        ...

    def ask(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Answer:
        """Natively, greedy. Safe from any thread."""
        ...

    def stream(self, messages: Messages, max_tokens: int, signature: type[dspy.Signature]) -> Generator[str]:
        """The same, in pieces. Closing it gives the rest up."""
        ...

    def drop(self) -> None:
        """Nobody waits any more for what was asked so far; where such requests would be in the way, they go."""
        ...

    def close(self) -> None:
        """Stop, whatever still waits."""
        ...


def options(max_tokens: int) -> dict[str, Any]:
    """Of every `dspy.LM`."""
    return {
        "engine": "litellm",
        "cache": False,
        "num_retries": 0,
        "temperature": 0.0,
        "max_tokens": max_tokens,
    }


def peer_adapter() -> dspy.Adapter:
    """Of every peer."""
    return dspy.ChatAdapter(use_json_adapter_fallback=False)
