"""What a stretch of work asked of language models, as one value."""

from __future__ import annotations

from dspy_toolkit.store import Frozen


class Usage(Frozen):
    """Calls, tokens and time. `+` adds two stretches of work; `-` gives what was spent since an earlier reading."""

    lm_calls: int = 0
    """Logical: a cached reply counts too."""
    physical_calls: int = 0
    """Calls that reached the model."""
    prompt_tokens: int = 0
    """Of all calls, cached ones included."""
    completion_tokens: int = 0
    """Of the physical calls: a cached reply was not generated again."""
    seconds: float = 0.0
    """Of the physical calls, each from its start to its end, time in the queue included. Calls overlap, so this is
    not wall time; divided by the physical calls it is the latency of one."""

    usd: float = 0.0
    """What the physical calls cost in dollars, by LiteLLM's prices; 0 for a model that has none."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: value + getattr(other, name) for name, value in self})

    def __sub__(self, other: Usage) -> Usage:
        return Usage(**{name: value - getattr(other, name) for name, value in self})
