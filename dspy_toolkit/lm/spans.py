"""What a call cost, on the MLflow span that it belongs to.

With `mlflow.dspy.autolog()` each call of an LM is a span; on a span of the user's own around several calls, their
numbers are added up. Nothing is imported or configured for this: a process that has not imported MLflow, or has no span
open, pays for one dictionary look-up.

Attributes, all beginning with `dspy_toolkit.lm.`: `calls`, `cached_calls`, `prompt_tokens`, `completion_tokens`, and
for an engine of this process, streamed or not, `queue_seconds`, `prefill_seconds`, `decode_seconds`, `seconds`, `reused_tokens`,
`forced_tokens`. Spans of a model (`LLM`, `CHAT_MODEL`) also get MLflow's own token usage, which its trace page adds up.

The other way round, a remote model's server is told the span that its call belongs to: whoever keeps the traces says it by
`sending`, and `remote` puts W3C's header into the request.

Not covered: `tracestate`, the vendors' part of W3C's context.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

log = logging.getLogger(__name__)

PREFIX = "dspy_toolkit.lm."
FROM_ENGINE = (
    "queue_seconds",
    "prefill_seconds",
    "decode_seconds",
    "seconds",
    "reused_tokens",
    "forced_tokens",
)
USAGE = "mlflow.chat.tokenUsage"
"""MLflow's name for it (`mlflow.tracing.constant.SpanAttributeKey.CHAT_USAGE`)."""
MODEL_SPANS = ("LLM", "CHAT_MODEL")

_lock = threading.Lock()
_numbers: ContextVar[dict[str, float] | None] = ContextVar("_numbers", default=None)
"""The engine's, of this thread's or task's last call."""
_traceparent: ContextVar[str | None] = ContextVar("_traceparent", default=None)


def annotate(response: Any, *, cached: bool, prompt_tokens: int, completion_tokens: int) -> None:
    """Add one call to the active span, if MLflow has one. Never raises.

    Args:
        response: LiteLLM's; its `_hidden_params` hold the engine's numbers, one entry a choice, where an engine gave it.
        cached: whether a cache answered; then nothing was computed, and only the call is counted.
        prompt_tokens: of this call.
        completion_tokens: of this call.
    """
    _numbers.set(None)
    try:
        engine = {} if cached else of_engine(response)
        _numbers.set(engine)
        current = getattr(sys.modules.get("mlflow"), "get_current_active_span", None)
        if current is None or (span := current()) is None:
            return
        numbers: dict[str, float] = {"calls": 1, "cached_calls": int(cached)}
        if not cached:
            numbers |= {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, **engine}
        with _lock:  # threads of one program may share a span
            span.set_attributes(
                {PREFIX + name: (span.get_attribute(PREFIX + name) or 0) + value for name, value in numbers.items()}
            )
            if not cached and span.span_type in MODEL_SPANS and span.get_attribute(USAGE) is None:
                span.set_attribute(
                    USAGE,
                    {
                        "input_tokens": prompt_tokens,
                        "output_tokens": completion_tokens,
                        "total_tokens": prompt_tokens + completion_tokens,
                    },
                )
    except Exception as error:  # isolation boundary: a call is answered whether or not its span can be written
        log.debug("The span cannot be annotated: %s: %s.", type(error).__name__, error)


def take_numbers() -> dict[str, float]:
    """The engine's numbers of the last call that this thread, or this task of an event loop, had answered; once."""
    found = _numbers.get() or {}
    _numbers.set(None)
    return found


@contextmanager
def sending(context: str | None) -> Iterator[None]:
    """Within the block, tell servers of remote models this W3C context (a `traceparent`), or none."""
    token = _traceparent.set(context)
    try:
        yield
    finally:
        _traceparent.reset(token)


def send(context: str | None) -> None:
    """From here on, in this thread or task, tell another W3C context than the one of `sending`."""
    _traceparent.set(context)


def traceparent() -> str | None:
    """The W3C context that a remote model's server is told by this thread or task; None for none."""
    return _traceparent.get()


def of_engine(response: Any) -> dict[str, float]:
    """The numbers of all choices together: they are generated side by side, so that the longest time is the call's."""
    hidden = getattr(response, "_hidden_params", None)
    hidden = hidden if isinstance(hidden, dict) else {}
    choices = hidden.get("engine") or (hidden.get("provider_specific_fields") or {}).get("engine")
    if not choices:
        return {}
    return {
        name: (max if name.endswith("seconds") else sum)(choice[name] for choice in choices) for name in FROM_ENGINE
    }
