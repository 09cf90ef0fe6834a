"""What a request wants, and what it gets."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from dspy_toolkit.serving.fallback import Move
from dspy_toolkit.serving.running import Answer
from dspy_toolkit.serving.streaming import Put


@dataclass
class Reply:
    """An answer to a request, with how it came about."""

    program: str
    """The name that was asked."""
    answer: Answer
    request_id: str
    moves: list[Move] = field(default_factory=list)
    """Who did not answer before."""
    members: list[dict[str, Any]] | None = None
    """Of an ensemble: each member's answer, or why there is none."""
    agreement: float | None = None
    """Of an ensemble: the share of its members, by weight, that said the same."""
    trace_id: str | None = None
    traceparent: str | None = None
    """W3C's context of the trace's span, where there is one."""

    def as_json(self) -> dict[str, Any]:
        """For a client."""
        answer, live = self.answer, self.answer.live
        usage = answer.usage
        made: dict[str, Any] = {
            "request_id": self.request_id,
            "program": self.program,
            "version": live.version,
            "model": live.model,
            "prediction": answer.prediction,
            "cached": answer.cached,
            "usage": {
                "lm_calls": usage.lm_calls,
                "model_calls": usage.physical_calls,
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
            },
            "timings": {"seconds": answer.seconds, **answer.engine},
            "fell_back": [str(move) for move in self.moves],
        }
        if self.members is not None:
            made |= {"members": self.members, "agreement": self.agreement}
        if answer.messages is not None:
            made["messages"] = answer.messages
        if self.trace_id is not None:
            made["trace_id"] = self.trace_id
        return made


@dataclass(frozen=True)
class Ask:
    """What a request wants, beside its inputs."""

    deadline: float
    """Of `time.monotonic`."""
    put: Put | None = None
    """Takes the fields while they grow."""
    members: bool = False
    messages: bool = False
    owner: str = ""
    """The id of the key that asks."""
    traceparent: str | None = None
    """The W3C context that the request came with."""
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
