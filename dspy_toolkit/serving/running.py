"""One program on one input, on an event loop, with what it cost.

A program with an `aforward` runs as a task; one without runs in a thread of a pool that serving has to itself. Who is
cancelled takes its calls of the engines of this process with it, also those that threads of the program make: they end at
the engine's next step, and each further call is refused. A thread cannot be stopped from outside: its place is taken until
the program returns.

Covered: DSPy's settings for one request, usage, the engine's numbers, the messages that were sent. Not covered: deadlines
and clients that go away (`requests`), the fields while they grow (`streaming`, which gives `send`); a call of a remote
model from a thread, which goes on to its end.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.callback import BaseCallback
from pydantic_core import to_jsonable_python

from dspy_toolkit.lm.litellm.provider import Calls
from dspy_toolkit.project.abstention import marked
from dspy_toolkit.serving.programs import Live, lm_for

if TYPE_CHECKING:
    from dspy_toolkit.lm.meter import MeteredLM
    from dspy_toolkit.lm.usage import Usage


@dataclass
class Answer:
    """What a program said, and what that took."""

    live: Live
    prediction: dict[str, Any]
    """Plain JSON."""
    usage: Usage
    seconds: float
    engine: dict[str, float]
    """The engine's numbers, added up over the calls; empty where it gave none."""
    trace: list[Any] = field(default_factory=list)
    """DSPy's: (predictor, inputs, prediction) of each step."""
    messages: list[Any] | None = None
    """What was sent to the model, a list a call, where that was asked for."""

    @property
    def cached(self) -> bool:
        """Whether no model was asked."""
        return self.usage.lm_calls > 0 and self.usage.physical_calls == 0


async def run(
    live: Live,
    inputs: dict[str, Any],
    threads: ThreadPoolExecutor,
    *,
    stream: Any = None,
    listeners: list[Any] | None = None,
    messages: bool = False,
    callbacks: list[Any] | None = None,
) -> Answer:
    """Run a program once.

    Args:
        threads: for programs without an `aforward`.
        stream: takes DSPy's chunks, in its `send`; for programs with an `aforward`.
        listeners: what DSPy asks whether a predictor is to be streamed.
        messages: whether to keep what is sent to the model.
        callbacks: of DSPy's, beside those in force.

    Raises:
        Exception: whatever the program raises; see `problems.problem_of`.
    """
    calls = Calls()
    lm = lm_for(live, calls)
    sent = _Sent() if messages else None
    more = [*(callbacks or []), *([sent] if sent else [])]
    trace: list[Any] = []  # of its own: the shared default would hold every prediction
    options: dict[str, Any] = {"trace": trace}
    if more:
        options["callbacks"] = [*dspy.settings.callbacks, *more]
    if stream is not None:
        options |= {"send_stream": stream, "stream_listeners": listeners or []}
    began = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(live.connection.context(lm))
        stack.enter_context(dspy.context(**options))
        try:
            if live.asynchronous:
                prediction = await live.program.acall(**inputs)
            else:
                here = contextvars.copy_context()
                future = threads.submit(here.run, lambda: live.program(**inputs))
                prediction = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            calls.cancel()
            raise
    return Answer(
        live=live,
        prediction=marked(as_json(prediction), live.project.abstain_below),
        usage=lm.meter.usage,
        seconds=time.perf_counter() - began,
        engine=_added(lm),
        trace=trace,
        messages=sent.lists if sent else None,
    )


def as_json(prediction: Any) -> dict[str, Any]:
    """A prediction's fields as plain JSON."""
    return to_jsonable_python(dict(prediction.items()), fallback=str, inf_nan_mode="null")


def _added(lm: MeteredLM) -> dict[str, float]:
    total: dict[str, float] = {}
    for numbers in lm.engine_numbers:
        for name, value in numbers.items():
            total[name] = total.get(name, 0) + value
    return total


class _Sent(BaseCallback):
    """Keeps the messages of each call."""

    def __init__(self) -> None:
        self.lists: list[Any] = []

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        asked = inputs.get("messages") or [{"role": "user", "content": inputs.get("prompt")}]
        self.lists.append(asked)
