"""Talking with a plain model, or with a program, each with what was said so far: `dspy-toolkit chat` as a function.

    talk = open_conversation(load_settings(), "router")
    talk.say({"": "My invoice is wrong."}, print)

Covered: the turns, handing out a reply while it grows, forgetting the oldest turns where they no longer fit the model. Not covered:
keeping a conversation, and the terminal.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from dspy_toolkit.errors import PromptTooLong, SettingsError

if TYPE_CHECKING:
    from dspy_toolkit.lm import Connection
    from dspy_toolkit.serving.programs import Live
    from dspy_toolkit.settings import Settings

Write = Callable[[str], None]
"""Takes a reply, piece by piece."""


class Conversation(Protocol):
    """One side of a conversation."""

    title: str
    """With whom: the model's name, or the program's and its model's."""
    asks: tuple[str, ...]
    """What a person is asked for, turn by turn: names of inputs; one without a name is the message itself."""
    dropped: int
    """Turns that were left out, the oldest first, since the model has no room for them."""

    def say(self, given: dict[str, str], write: Write) -> dict[str, Any]:
        """Answer; the reply goes to `write` piece by piece, and is returned whole: the outputs, or `reply`.

        A turn that is not finished, since it failed or was interrupted, is as if it had not been.

        Args:
            given: a text for each of `asks`.
            write: takes the reply as it grows.

        Returns:
            A program's outputs; of a plain model `reply` alone.

        Raises:
            DatasetError: what was given does not fit; the conversation goes on.
            ToolkitError: the model failed (somewhere in the exception's chain).
        """
        ...

    def forget(self) -> None:
        """Begin anew."""
        ...


def open_conversation(settings: Settings, program: str = "", *, system: str = "", location: str = "") -> Conversation:
    """Begin to talk with a program, or with the plain model where none is named. Nothing of it is kept.

    Args:
        settings: the home, the registry and the models.
        program: as `load_program` takes it: a project, `project@champion`, `project@3` or a folder.
        system: what the plain model is told first.
        location: where the program's project is, where its name is not enough.

    Returns:
        The conversation, before its first turn.

    Raises:
        SettingsError: there are both a program and `system`.
        RegistryError, ProjectError, ProgramError, ModelError: the program or the model cannot be used.
    """
    if program:
        if system:
            raise SettingsError("--system is for the plain model: a program has its own instructions. Leave it out.")
        from dspy_toolkit.serving.programs import load_live

        return WithProgram(load_live(settings, program, location))
    from dspy_toolkit.lm import connect

    return WithModel(connect(settings), system)


class WithModel:
    """A conversation with a model as it is."""

    asks: tuple[str, ...] = ("",)

    def __init__(self, connection: Connection, system: str = "") -> None:
        """Begin.

        Args:
            connection: the model.
            system: what it is told before everything else.
        """
        self.title = connection.model
        self._connection, self._turns = connection, list[dict[str, str]]()
        self._first = [{"role": "system", "content": system}] if system else []
        self.dropped = 0

    def forget(self) -> None:
        self._turns.clear()
        self.dropped = 0

    def say(self, given: dict[str, str], write: Write) -> dict[str, Any]:
        said = {"role": "user", "content": given[""]}
        before, reply = list(self._turns), ""
        while True:
            try:
                for piece in self._pieces([*self._first, *before, said]):
                    reply += piece
                    write(piece)
                break
            except Exception as error:  # isolation boundary: LiteLLM wraps what the engine raised
                if not before or reply or not _is_too_long(error):
                    raise
                before = before[2:]
                self.dropped += 1
        self._turns = [*before, said, {"role": "assistant", "content": reply}]
        return {"reply": reply}

    def _pieces(self, messages: list[dict[str, str]]) -> Iterator[str]:
        from dspy_toolkit.lm.litellm.provider import import_litellm

        lm = self._connection.lm
        options = {key: value for key, value in lm.kwargs.items() if value is not None}
        stream = import_litellm().completion(model=lm.model, messages=messages, stream=True, num_retries=0, **options)
        for chunk in stream:
            if text := chunk.choices[0].delta.content:
                yield text


class WithProgram:
    """A conversation with a program: each turn is a run. What was said before it is given to an input of type `dspy.History`."""

    def __init__(self, live: Live) -> None:
        """Begin.

        Args:
            live: the program and its models.
        """
        import dspy

        from dspy_toolkit.project.signatures import fields_of

        types = fields_of(live.program)
        names = live.fields.input_names
        # No column of rows: it is looked for among the fields of the signatures.
        self._history = next((name for name, kind in types.items() if kind is dspy.History), None)
        asked = tuple(name for name in names if name != self._history)
        self.asks: tuple[str, ...] = asked if len(asked) > 1 else ("",)
        self.title = f"{live} on {live.model}"
        self._live, self._one = live, asked[0] if len(asked) == 1 else ""
        self._turns: list[dict[str, Any]] = []
        self.dropped = 0
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="chat")

    def forget(self) -> None:
        self._turns.clear()

    def say(self, given: dict[str, str], write: Write) -> dict[str, Any]:
        import dspy

        from dspy_toolkit.predicting import fit
        from dspy_toolkit.project.signatures import fields_of

        types = fields_of(self._live.program)
        named = {self._one: given[""]} if self._one else given
        inputs = {name: fit(name, value, types.get(name, Any)) for name, value in named.items()}
        told = inputs if self._history is None else {**inputs, self._history: dspy.History(messages=self._turns)}
        answer = asyncio.run(self._run(told, write))
        self._turns.append({**inputs, **answer})
        return answer

    async def _run(self, inputs: dict[str, Any], write: Write) -> dict[str, Any]:
        from dspy_toolkit.serving.running import run
        from dspy_toolkit.serving.streaming import FieldStream

        shown = _Fields(write)
        stream = FieldStream(self._live.program, shown.take)
        answer = await run(
            self._live,
            inputs,
            self._threads,
            stream=stream if self._live.asynchronous else None,
            listeners=stream.listeners,
        )
        stream.finish(answer.trace)
        shown.finish(answer.prediction)
        return answer.prediction


class _Fields:
    """Writes fields as they grow, each with its name on a line of its own."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._now: tuple[str, str] | None = None
        self._seen: set[str] = set()

    def take(self, event: str, data: dict[str, Any]) -> None:
        """Take an event of `FieldStream`."""
        self._add((data["predictor"], data["field"]), data["text"])

    def finish(self, prediction: dict[str, Any]) -> None:
        """Write what of the prediction no predictor said."""
        for name, value in prediction.items():
            if name not in self._seen:
                self._add(("", name), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

    def _add(self, field: tuple[str, str], text: str) -> None:
        if field != self._now:
            self._write(f"{'' if self._now is None else chr(10)}{field[1]}: ")
        self._now = field
        self._seen.add(field[1])
        self._write(text)


def _is_too_long(error: BaseException) -> bool:
    from dspy_toolkit.lm import root_error

    return isinstance(root_error(error), PromptTooLong)
