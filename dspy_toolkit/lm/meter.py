"""Counting what a language model is asked, and stopping at a limit.

A *logical* call is one that a program makes, also when a cache answers; a *physical* call reaches the model. Budgets
are stated in logical calls, so that a run that resumes from the cache searches no further than one that was never
stopped.

What a judge, or anything else that a metric asks, spends is counted in the run's meter, and apart in `Meter.judge`.

What a call cost is also written on the MLflow span that it belongs to (`spans`).

A remote model that has no room, or failed, is asked again a few times (`dspy_toolkit.lm.litellm.patience`), which counts as
one call. What is left of its failures carries the toolkit's own error as its cause.

Not covered: with DSPy's `disable_history`, DSPy tells nobody what came back, so only logical calls are counted and no
span is written.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import dspy
from dspy.utils.callback import with_callbacks
from dspy.utils.exceptions import LMError

from dspy_toolkit.errors import BudgetExhausted, EngineFailed, ToolkitError
from dspy_toolkit.lm.litellm.errors import is_empty, mask, remote_fault, root_error
from dspy_toolkit.lm.litellm.fallback import staying_here
from dspy_toolkit.lm.litellm.patience import Patience
from dspy_toolkit.lm.litellm.provider import Calls, count_prompt
from dspy_toolkit.lm.models.weights import PREFIX
from dspy_toolkit.lm.spans import annotate, of_engine
from dspy_toolkit.lm.usage import Usage

log = logging.getLogger(__name__)

_began: ContextVar[float] = ContextVar("_began")
"""When the call of this thread, or of this task of an event loop, was made."""


class Meter:
    """Counters of one stretch of work. Safe from any thread."""

    def __init__(
        self,
        limit: int | None = None,
        on_call: Callable[[int], None] | None = None,
        *,
        one_model: bool = False,
        usd: float | None = None,
        whole: Meter | None = None,
    ) -> None:
        """Args:
        limit: logical calls allowed, None for no limit.
        on_call: told the count after each, in any thread.
        one_model: whether the replies are to be the model's own, and nothing that it falls back on elsewhere.
        usd: dollars allowed, None for no limit. A call counts as the dearest one so far until its price is known, so that calls
            at once do not exceed it together; the first ones are let through one at a time.
        whole: the meter that this one is a part of: what is counted here is counted, and limited, there too.
        """
        self.limit, self._on_call, self.one_model, self.usd, self._whole = limit, on_call, one_model, usd, whole
        self.usage = Usage()
        """What was asked so far. A new value each time, so that whoever reads it has all its numbers of one moment."""
        self.parse_retries = self.truncated = 0
        self.refused = 0
        """Calls that a limit turned away."""
        self._lock = threading.Lock()
        self._priced = threading.Condition(self._lock)
        self._open = 0
        self._dearest: float | None = None
        self._judge: Meter | None = None

    @property
    def judge(self) -> Meter:
        """The part of this meter that counts what a metric asked for."""
        with self._lock:
            if self._judge is None:
                self._judge = Meter(one_model=self.one_model, whole=self)
            return self._judge

    @property
    def priced(self) -> bool:
        """Whether a limit in dollars holds, so that `charge` may wait for the price of another call."""
        return self.usd is not None or (self._whole is not None and self._whole.priced)

    def charge(self) -> None:
        """Count one logical call. Raises BudgetExhausted instead when a limit is reached."""
        with self._lock:
            if self.limit is not None and self.usage.lm_calls >= self.limit:
                self.refused += 1
                raise BudgetExhausted(f"The budget of {self.limit} LM calls is spent.")
            if self.usd is not None:
                self._reserve(self.usd)
            self.usage += Usage(lm_calls=1)
            count = self.usage.lm_calls
        if self._whole is not None:
            try:
                self._whole.charge()
            except BudgetExhausted:
                with self._priced:
                    self.usage -= Usage(lm_calls=1)
                    self.refused += 1
                    self._free()
                raise
        if self._on_call is not None:
            self._on_call(count)

    def _reserve(self, usd: float) -> None:
        """Set a call's price aside, inside the lock."""
        while self._dearest is None and self._open:
            self._priced.wait()
        if self.usage.usd + ((self._open + 1) * (self._dearest or 0)) > usd:
            self.refused += 1
            raise BudgetExhausted(f"The budget of {usd:g} dollars is spent ({self.usage.usd:.4f}).")
        self._open += 1

    def settle(self) -> None:
        """A charged call is over, well or not: what was set aside for it is free."""
        if self._whole is not None:
            self._whole.settle()
        with self._priced:
            self._free()

    def _free(self) -> None:
        """Free what was set aside for one call, inside the lock."""
        if self.usd is not None:
            self._open -= 1
            self._priced.notify_all()

    def add(self, usage: Usage) -> None:
        """Count what was asked elsewhere."""
        if self._whole is not None:
            self._whole.add(usage)
        with self._lock:
            self.usage += usage

    def record(
        self,
        *,
        cached: bool,
        prompt_tokens: int,
        completion_tokens: int,
        truncated: bool,
        seconds: float = 0.0,
        usd: float = 0.0,
    ) -> None:
        """Count what came back. Prompt tokens of cached replies count too; completion tokens are the decoded ones."""
        if self._whole is not None:
            self._whole.record(
                cached=cached, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, truncated=truncated,
                seconds=seconds, usd=usd,
            )  # fmt: skip
        asked = Usage(
            physical_calls=0 if cached else 1,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            seconds=0.0 if cached else seconds,
            usd=0.0 if cached else usd,
        )
        with self._lock:
            self.usage += asked
            if not cached:
                self._dearest = max(self._dearest or 0.0, usd)
            self.truncated += truncated

    def retried(self) -> None:
        """Count a second call for a reply that could not be parsed."""
        with self._lock:
            self.parse_retries += 1
        if self._whole is not None:
            self._whole.retried()


class MeteredLM(dspy.LM):
    """A `dspy.LM` with a meter. Copies share the meter; `metered` makes a copy with a fresh one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.meter = Meter()
        self.where = "[lm]"
        """The setting that names the model, for messages."""
        self.judge: Callable[[str | None], MeteredLM] | None = None
        """Gives the LM that grades what this one says, by the model that a metric names or None; `connect` sets it."""
        self.passing = False
        """Whether nothing is kept of a call, and the prompt of a cached reply is not counted."""
        self.engine_numbers: list[dict[str, float]] = []
        """Of a passing LM: what the engine said of each call, see `spans`."""
        self.calls: Calls | None = None
        """Of a passing LM: its calls of engines, whatever thread makes them, so that they can be given up."""

    def for_one_request(self, on_call: Callable[[int], None] | None = None, calls: Calls | None = None) -> MeteredLM:
        """A copy with a meter of its own for a process that answers for months: DSPy's histories would hold every prompt.

        Args:
            on_call: told the count of calls before each; what it raises ends the program.
            calls: takes its calls of engines, for whoever may give the request up.
        """
        lm = copy.copy(self)
        lm.meter, lm.passing, lm.engine_numbers, lm.calls = Meter(on_call=on_call), True, [], calls
        return lm

    def part(self) -> MeteredLM:
        """A copy with a meter of its own, whose calls count on this one's too."""
        lm = self.copy()
        lm.meter = Meter(one_model=self.meter.one_model, whole=self.meter)
        return lm

    def metered(
        self, limit: int | None = None, on_call: Callable[[int], None] | None = None, usd: float | None = None
    ) -> MeteredLM:
        """A copy with a meter of its own, up to `limit` logical calls and `usd` dollars; `on_call` is told the count after each.

        What is counted is compared: replies of `lm.fallbacks` would mix models in one score, and are not asked for.
        """
        lm = self.copy()
        lm.meter = Meter(limit, on_call, one_model=True, usd=usd)
        return lm

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        with self._charged():
            if not self.model.startswith(PREFIX):
                return self._ask(prompt, messages=messages, **kwargs)
            with staying_here(self.meter.one_model), self._collecting():
                return super().__call__(prompt, messages=messages, **self._completed(kwargs))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        if self.meter.priced:
            # Its price may have to be waited for, which the call that is under way in this loop is to bring.
            await asyncio.to_thread(self.meter.charge)
        with self._charged(already=self.meter.priced):
            if not self.model.startswith(PREFIX):
                return await self._aask(prompt, messages=messages, **kwargs)
            with staying_here(self.meter.one_model), self._collecting():
                return await super().acall(prompt, messages=messages, **self._completed(kwargs))

    def _collecting(self) -> AbstractContextManager[None]:
        # Set for each call, by the LM that DSPy hands to its own threads: a context variable would not get there.
        return nullcontext() if self.calls is None else self.calls.collecting()

    @contextmanager
    def _charged(self, *, already: bool = False) -> Iterator[None]:
        """One logical call: charged before it begins, unless it is already, and settled when it is over."""
        meter = self.meter
        if not already:
            meter.charge()
        _began.set(time.monotonic())
        try:
            yield
        finally:
            meter.settle()

    # Callbacks are told of a call here, and so once, however often the server is asked.
    @with_callbacks
    def _ask(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        patience = Patience()
        while True:
            try:
                with dspy.context(callbacks=[]):
                    return super().__call__(prompt, messages=messages, **kwargs)
            except (LMError, EngineFailed) as error:
                time.sleep(self._pause(patience, error))

    @with_callbacks
    async def _aask(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        patience = Patience()
        while True:
            try:
                with dspy.context(callbacks=[]):
                    return await super().acall(prompt, messages=messages, **kwargs)
            except (LMError, EngineFailed) as error:
                await asyncio.sleep(self._pause(patience, error))

    def _pause(self, patience: Patience, error: Exception) -> float:
        """Seconds to wait before the server is asked again. Raises `error`, with the toolkit's own behind it, when it is not."""
        mask(error)
        own = error if isinstance(error, ToolkitError) else None
        fault = own or remote_fault(error, self.model, self.where, self.kwargs) or root_error(error)
        if fault is None:
            raise error
        # Of a streamed reply, a part may be on its way already.
        pause = (
            patience.pause(fault, getattr(error, "retry_after", None)) if dspy.settings.send_stream is None else None
        )
        if pause is not None:
            log.info("%s Asked again in %.1f s.", fault, pause)
            return pause
        if fault is not error:
            fault.__cause__, error.__cause__ = error.__cause__, fault
        raise error

    def _completed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a call of an engine needs beside what DSPy gives.

        DSPy asks for another sample by `rollout_id`, which it does not hand on. As the seed it makes a run that is
        repeated from nothing draw the same samples. And LiteLLM would import the `mcp` package for any call with tools.
        """
        rollout = kwargs.get("rollout_id", self.kwargs.get("rollout_id"))
        extra: dict[str, Any] = {} if rollout is None else {"seed": int(rollout)}
        if kwargs.get("tools"):
            extra["_skip_mcp_handler"] = True
        return {**extra, **kwargs}

    def update_history(self, entry: dict[str, Any]) -> None:
        """Called by DSPy for each reply, cached or not: count it, then keep it as DSPy does."""
        response, usage = entry["response"], entry["usage"]
        tokens = usage.get("prompt_tokens")
        if tokens is None and self.passing:
            tokens = 0
        elif tokens is None:
            # DSPy's cache forgets the usage; what a prompt costs is the same the second time.
            tokens = count_prompt(self.model, entry["messages"] or [{"role": "user", "content": entry["prompt"]}])
        counts = {
            "cached": bool(_field(response, "cache_hit")),
            "prompt_tokens": int(tokens),
            "completion_tokens": int(usage.get("completion_tokens") or 0),
        }
        truncated = "length" in [_field(choice, "finish_reason") for choice in _field(response, "choices") or []]
        seconds = time.monotonic() - _began.get(time.monotonic())
        self.meter.record(**counts, truncated=truncated, seconds=seconds, usd=float(entry.get("cost") or 0.0))
        annotate(response, **counts)
        if self.passing and not counts["cached"]:  # a cached reply has those of the call that it is of
            self.engine_numbers.append(of_engine(response))
        elif not self.passing:
            super().update_history(entry)
        if is_empty(response) and not self.model.startswith(PREFIX):
            raise EngineFailed(f"{self.model} gave an empty reply. Try again later, or look into its server's log.")


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)
