"""Reading the fields of a reply while it grows, and showing them to DSPy's stream listeners.

A listener waits for `[[ ## name ## ]]` in the chunks that a model sends. A reply in another format is shown to it as if it
were in `chat`: each chunk is replaced by what it adds to the fields. What the program itself gets stays as the model wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol


class FieldReader(Protocol):
    """Splits a growing reply into fields."""

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """Pairs (field, what it grew by) that `text`, the next piece of the reply, completes."""
        ...

    def end(self) -> Iterator[tuple[str, str]]:
        """The pairs that were held back."""
        ...


class MarkedReader:
    """Fields that stand between fixed texts: each field's value ends where the mark after it begins."""

    def __init__(self, marks: Sequence[tuple[str, str, str]], unescape: Callable[[str], str] = str) -> None:
        """Args:
        marks: of each field its name, the text before its value and the text after it (empty: the end of the reply).
        unescape: what a value means.
        """
        self._marks, self._unescape = list(marks), unescape
        self._buffer, self._at, self._inside = "", 0, False

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """See `FieldReader`."""
        self._buffer += text
        while self._at < len(self._marks):
            name, before, after = self._marks[self._at]
            if not self._inside:
                if not self._buffer.startswith(before):
                    return
                self._buffer, self._inside = self._buffer[len(before) :], True
            if after and (end := self._buffer.find(after)) >= 0:
                yield name, self._unescape(self._buffer[:end])
                self._buffer, self._inside, self._at = self._buffer[end:], False, self._at + 1
                continue
            if ready := self._ready(after):
                yield name, self._unescape(self._buffer[:ready])
                self._buffer = self._buffer[ready:]
            return

    def end(self) -> Iterator[tuple[str, str]]:
        """See `FieldReader`."""
        if self._inside and self._buffer:
            yield self._marks[self._at][0], self._unescape(self._buffer)
            self._buffer = ""

    def _ready(self, after: str) -> int:
        """How much of the buffer cannot be the beginning of the mark after the value, or of an escaped sign."""
        size = len(self._buffer)
        for held in range(min(len(after), size), 0, -1):
            if after.startswith(self._buffer[-held:]):
                size -= held
                break
        cut = self._buffer.rfind("&", max(size - 5, 0), size) if self._unescape is not str else -1
        return cut if cut >= 0 and ";" not in self._buffer[cut:size] else size


class JSONReader:
    """The properties of one JSON object: a text as it grows, anything else when it is complete."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._text = list(names), ""
        self._given: dict[str, int] = {}
        """Field → characters that were given; of a value that is no text, 1 when it was."""

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """See `FieldReader`."""
        self._text += text
        yield from self._grown(final=False)

    def end(self) -> Iterator[tuple[str, str]]:
        """See `FieldReader`."""
        yield from self._grown(final=True)

    def _grown(self, *, final: bool) -> Iterator[tuple[str, str]]:
        import jiter

        try:
            seen = jiter.from_json(self._text.encode(), partial_mode="trailing-strings")
        except ValueError:  # it ends inside an escape sequence
            return
        found = [name for name in self._names if isinstance(seen, dict) and name in seen]
        for name in found:
            value, given = seen[name], self._given.get(name, 0)
            if isinstance(value, str):
                if len(value) > given:
                    yield name, value[given:]
                self._given[name] = max(len(value), given)
            elif not given and (final or name != found[-1] or self._text.rstrip().endswith("}")):
                yield name, json.dumps(value, ensure_ascii=False)
                self._given[name] = 1


class ShownAsChat:
    """A stream of DSPy's, through which a reply in another format is shown as one in `chat`."""

    def __init__(self, stream: Any, reader: FieldReader) -> None:
        self._stream, self._reader, self._field = stream, reader, ""

    async def send(self, chunk: Any) -> None:
        """Pass on a chunk of LiteLLM's; the sender keeps its own, unchanged."""
        choices = getattr(chunk, "choices", None)
        if not choices:
            await self._stream.send(chunk)
            return
        pairs = list(self._reader.feed(choices[0].delta.content or ""))
        over = choices[0].finish_reason is not None
        if over:
            pairs += self._reader.end()
        said = "".join(map(self._said, pairs)) + ("\n\n[[ ## completed ## ]]" if over else "")
        shown = chunk.model_copy(deep=True)
        if hasattr(chunk, "predict_id"):
            shown.predict_id = chunk.predict_id
        shown.choices[0].delta.content = said
        await self._stream.send(shown)

    def _said(self, pair: tuple[str, str]) -> str:
        name, text = pair
        if name == self._field:
            return text
        before = "\n\n" if self._field else ""
        self._field = name
        return f"{before}[[ ## {name} ## ]]\n{text}"
