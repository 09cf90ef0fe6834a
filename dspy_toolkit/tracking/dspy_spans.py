"""DSPy's callbacks as MLflow spans: one for each module and each call of a language model, with what the engine did under it.

The parent is found by DSPy's own call ids, not by a thread's context: a program's parts may run on several threads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback
from pydantic_core import to_jsonable_python

from dspy_toolkit.lm.spans import PREFIX, take_numbers

ENGINE_PARTS = ("queue", "prefill", "decode")
"""What a call of an engine is made of, in this order."""


class DspySpans(BaseCallback):
    """Spans under one that is open."""

    def __init__(self, root: Any, *, most: int | None = None, texts: bool = True) -> None:
        """Args:
        root: the span above.
        most: programs, or calls outside of any, that have spans; None for all.
        texts: whether spans hold inputs and outputs.
        """
        self._root, self._left, self._texts = root, most, texts
        self._spans: dict[str, Any] = {}
        self._without: set[str] = set()
        """Calls under way that have no span, nor has what they call."""

    def _begin(self, call_id: str, name: str, kind: str, inputs: Any) -> None:
        import mlflow

        outside = ACTIVE_CALL_ID.get() or ""
        above = self._spans.get(outside)
        if above is None and self._left is not None:
            if outside in self._without or self._left <= 0:
                self._without.add(call_id)
                return
            self._left -= 1
        self._spans[call_id] = mlflow.start_span_no_context(
            name, span_type=kind, parent_span=above or self._root, inputs=self._text(inputs)
        )

    def _end(self, call_id: str, outputs: Any, exception: BaseException | None, numbers: Mapping[str, float]) -> None:
        self._without.discard(call_id)
        if (span := self._spans.pop(call_id, None)) is None:
            return
        if numbers:
            span.set_attributes({PREFIX + name: value for name, value in numbers.items()})
            _engine_spans(span, numbers)
        if exception is not None:
            span.record_exception(exception)
        plain = dict(outputs.items()) if hasattr(outputs, "items") else outputs
        span.end(outputs=self._text(plain), status="ERROR" if exception else "OK")

    def _text(self, value: Any) -> Any:
        return to_jsonable_python(value, fallback=str) if self._texts else None

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._begin(call_id, type(instance).__name__, "CHAIN", inputs.get("kwargs", inputs))

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._end(call_id, outputs, exception, {})

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        take_numbers()  # of an earlier call, which had no span
        self._begin(call_id, "LM", "CHAT_MODEL", inputs.get("messages") or inputs.get("prompt"))

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self._end(call_id, outputs, exception, take_numbers())


def _engine_spans(above: Any, numbers: Mapping[str, float]) -> None:
    """What the engine did for a call that ends now."""
    import mlflow

    seconds = [numbers[f"{part}_seconds"] for part in ENGINE_PARTS]
    at = max(above.start_time_ns, time.time_ns() - int(1e9 * sum(seconds)))
    for part, took in zip(ENGINE_PARTS, seconds, strict=True):
        span = mlflow.start_span_no_context(f"engine {part}", parent_span=above, start_time_ns=at)
        at += int(1e9 * took)
        span.end(end_time_ns=at)
