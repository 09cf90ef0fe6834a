"""The fields of a program's predictors while they grow.

DSPy hands a predictor's chunks to `FieldStream.send`; for each run of a predictor, a listener for each output splits them into
fields. What a cache answers, what a choice's scores decide and what arrives in one piece has no chunks: those fields are sent
whole, as soon as anything else is sent or, by `finish`, when the program is over.

An event is `{"predictor", "field", "run", "text"}`. A predictor's runs have numbers from 1, in the order in which they begin to
say something; the texts of one do not continue those of another. A run without chunks that says what the run before it said is
not sent. The final prediction is what counts.

Covered: several predictors, predictors that run again or several times at once. Not covered: telling apart runs at the same
time where a server gives its replies one id, or where a cache answers one of them; and programs without `aforward`: their
fields come whole, at the end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dspy
from dspy.streaming import StreamListener
from pydantic_core import to_jsonable_python

from dspy_toolkit.serving.schemas import signature_of

if TYPE_CHECKING:
    from collections.abc import Sequence

Put = Callable[[str, Any], None]
"""Takes an event's name and its data."""


class FieldStream:
    """One request's stream."""

    def __init__(self, program: dspy.Module, put: Put) -> None:
        self._put = put
        self._predictors = {id(predictor): (name, predictor) for name, predictor in program.named_predictors()}
        self.listeners = [listener for name, made in program.named_predictors() for listener in _listeners(name, made)]
        """For DSPy, which asks them whose chunks are wanted; they hear nothing."""
        self._open: dict[str, dict[tuple[str, int], _Run]] = {name: {} for name, _ in self._predictors.values()}
        """Predictor → its runs that are not over, oldest first, by the reply that is streamed."""
        self._ended: Counter[str] = Counter()
        """A reply's id → how many replies of that id have ended: there are servers that give all the same."""
        self._runs: Counter[str] = Counter()
        self._said: dict[str, dict[str, str]] = {}
        """Predictor → what its last run that is over said."""
        self._seen: dict[int, Any] = {}
        """Entries of traces by their `id`, which is theirs as long as they are kept."""
        self._looked_at: tuple[int, int] = (0, 0)

    async def send(self, chunk: Any) -> None:
        """Take one of DSPy's chunks."""
        self._catch_up(dspy.settings.trace or ())
        found = self._predictors.get(getattr(chunk, "predict_id", 0))
        if found is None:
            return
        name, predictor = found
        key = chunk.id, self._ended[chunk.id]
        run = self._open[name].get(key)
        if run is None:
            if not _says_something(chunk):  # what comes after a reply's end, such as its usage
                return
            run = self._open[name][key] = _Run(name, _listeners(name, predictor))
        for listener in run.listeners:
            if (said := listener.receive(chunk)) is not None:
                self._emit(run, said.signature_field_name, said.chunk)
        if any(choice.finish_reason is not None for choice in chunk.choices):
            self._ended[chunk.id] += 1

    def finish(self, trace: list[Any]) -> None:
        """Send what was held back, and each field that had no chunks. Args: trace: DSPy's, of the run."""
        self._catch_up(trace)
        for runs in self._open.values():
            for run in runs.values():
                if run.number == self._runs[run.name]:  # an earlier one is a run that failed
                    self._finalize(run)

    def _catch_up(self, trace: Sequence[Any]) -> None:
        """Close the runs that are over since, and send of each what had no chunks."""
        now = (id(trace), len(trace))
        if now == self._looked_at:
            return
        self._looked_at = now
        for entry in trace:
            if id(entry) in self._seen:  # also where a program has put the trace of a part into its own
                continue
            self._seen[id(entry)] = entry
            predictor, _, prediction = entry
            if (found := self._predictors.get(id(predictor))) is not None:
                self._close(found[0], {field: _text(prediction[field]) for field in _outputs(predictor, prediction)})

    def _close(self, name: str, texts: dict[str, str]) -> None:
        run = self._over(name, texts)
        if run is None and texts != self._said.get(name):
            run = _Run(name)
        if run is not None:
            self._finalize(run)
            for field, text in texts.items():
                if field not in run.sent:
                    self._emit(run, field, text)
        self._said[name] = texts

    def _over(self, name: str, texts: dict[str, str]) -> _Run | None:
        """The open run that ended with these texts: of several the newest whose pieces begin them, or else the newest."""
        runs = self._open[name]
        if not runs:
            return None
        newest = list(reversed(runs))
        return runs.pop(next((key for key in newest if runs[key].begins(texts)), newest[0]))

    def _finalize(self, run: _Run) -> None:
        for listener in run.listeners:
            if (said := listener.finalize()) is not None:
                self._emit(run, said.signature_field_name, said.chunk)

    def _emit(self, run: _Run, field: str, text: str) -> None:
        if not text:
            return
        if not run.number:
            self._runs[run.name] += 1
            run.number = self._runs[run.name]
        run.sent[field] = run.sent.get(field, "") + text
        self._put("field", {"predictor": run.name, "field": field, "run": run.number, "text": text})


class _Run:
    """One run of a predictor."""

    def __init__(self, name: str, listeners: Sequence[StreamListener] = ()) -> None:
        self.name, self.listeners = name, listeners
        self.number = 0
        """0 until something of it is sent."""
        self.sent: dict[str, str] = {}

    def begins(self, texts: dict[str, str]) -> bool:
        """Whether something was sent, and these texts go on from it."""
        return bool(self.sent) and all(texts.get(field, "").startswith(part) for field, part in self.sent.items())


def _says_something(chunk: Any) -> bool:
    return any(value for choice in chunk.choices for part, value in choice.delta if part != "role")


def _listeners(name: str, predictor: Any) -> list[StreamListener]:
    """DSPy's, which keep the state of one stream."""
    return [
        StreamListener(field, predict=predictor, predict_name=name) for field in signature_of(predictor).output_fields
    ]


def _outputs(predictor: Any, prediction: Any) -> list[str]:
    return [field for field in signature_of(predictor).output_fields if field in prediction]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    plain = to_jsonable_python(value, fallback=str)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
