"""The fields of a program's predictors while they grow.

DSPy hands a predictor's chunks to `FieldStream.send`; a listener for each output splits them into fields. What a cache answers,
what a choice's scores decide and what arrives in one piece has no chunks: `finish` sends those fields whole, so that each
output of each predictor that ran was sent when the run is over. The final prediction is what counts.

Covered: several predictors, predictors that run again (their fields begin anew). Not covered: telling apart two runs of one
predictor at the same time, and programs without `aforward`: their fields come whole, at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dspy.streaming import StreamListener
from pydantic_core import to_jsonable_python

from dspy_toolkit.serving.schemas import signature_of

if TYPE_CHECKING:
    import dspy

Put = Callable[[str, Any], None]
"""Takes an event's name and its data."""


class FieldStream:
    """One request's stream. DSPy's listeners keep the state of one stream, so they are made for each."""

    def __init__(self, program: dspy.Module, put: Put) -> None:
        self._put = put
        self._names = {id(predictor): name for name, predictor in program.named_predictors()}
        self.listeners = [
            StreamListener(field, predict=predictor, predict_name=name, allow_reuse=True)
            for name, predictor in program.named_predictors()
            for field in signature_of(predictor).output_fields
        ]
        self._of: dict[int, list[StreamListener]] = {}
        for listener in self.listeners:
            self._of.setdefault(id(listener.predict), []).append(listener)
        self._sent: set[tuple[str, str]] = set()

    async def send(self, chunk: Any) -> None:
        """Take one of DSPy's chunks."""
        for listener in self._of.get(getattr(chunk, "predict_id", 0), ()):
            if (said := listener.receive(chunk)) is not None:
                self._emit(str(said.predict_name), said.signature_field_name, said.chunk)

    def finish(self, trace: list[Any]) -> None:
        """Send what was held back, and each field that had no chunks. Args: trace: DSPy's, of the run."""
        for listener in self.listeners:
            if (said := listener.finalize()) is not None:
                self._emit(str(said.predict_name), said.signature_field_name, said.chunk)
        for predictor, _, prediction in trace:
            if (name := self._names.get(id(predictor))) is None:
                continue
            for field in signature_of(predictor).output_fields:
                if (name, field) not in self._sent and field in prediction:
                    self._emit(name, field, _text(prediction[field]))

    def _emit(self, predictor: str, field: str, text: Any) -> None:
        if text:
            self._sent.add((predictor, field))
            self._put("field", {"predictor": predictor, "field": field, "text": _text(text)})


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    plain = to_jsonable_python(value, fallback=str)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
