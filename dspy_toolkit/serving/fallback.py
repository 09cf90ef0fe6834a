"""Who answers where the first cannot: champion, then the version before it, then a listed model.

    chain = FallBack(failures=5, seconds=30, share=0.6)
    moves: list[Move] = []
    answer, _ = await chain.run([Option(…), Option(…)], deadline, moves)

Each option has a program and a model, and there is a circuit breaker (pybreaker) for each program and each model. A model that
fails takes all options on it out for this request; a program that fails takes out its own. What is wrong with the request itself
moves nothing: nobody else would answer it. All but the last option get a share of the time that is left.

Covered: the order, the time, the breakers, what happened as values, also where nobody answered. Not covered: what an
option does, and counting what happened (`service`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

import pybreaker

from dspy_toolkit.serving.problems import Problem, in_words, is_of_the_model, is_of_the_request, problem_of

log = logging.getLogger(__name__)

T = TypeVar("T")
MARGIN = 0.25
"""Seconds, a tenth of the time that is left at most, that the last option does not get: whoever set the deadline would
end it in the same moment, and nobody would be told which option was too slow.
"""
_MOVES = "dspy_toolkit_moves"


@dataclass(frozen=True)
class Option(Generic[T]):
    """One who may answer."""

    program: str
    """Its name: `router@4`."""
    model: str
    ask: Callable[[], Awaitable[T]]


@dataclass(frozen=True)
class Move:
    """An option that did not answer."""

    program: str
    model: str
    why: str
    """A code of `problems`, or `breaker_open`."""

    def __str__(self) -> str:
        return f"{self.program} on {self.model}: {self.why}"


def moves_of(error: BaseException) -> list[Move]:
    """Who did not answer, in the order of asking, where `FallBack.run` raised `error`; nobody for any other error."""
    return getattr(error, _MOVES, [])


class _Failed(Exception):
    """What a breaker counts."""


class FallBack:
    """Asks options in turn. One for all requests; safe on one event loop."""

    def __init__(self, failures: int = 5, seconds: float = 30, share: float = 0.6, patience: float = 0) -> None:
        """Args:
        failures: in a row, after which a program or a model is not asked.
        seconds: after which it is tried again.
        share: of the time that is left, for each option but the last.
        patience: seconds that an option must have had before its running out of time counts: a client that allows a
            millisecond must not shut a model out for everybody.
        """
        self._failures, self._seconds, self._share, self._patience = failures, seconds, share, patience
        self._breakers: dict[str, tuple[pybreaker.CircuitBreaker, pybreaker.CircuitMemoryStorage]] = {}
        self._failed_at: dict[str, float] = {}

    async def run(
        self, options: Sequence[Option[T]], deadline: float, moves: list[Move] | None = None, request_id: str = ""
    ) -> tuple[T, list[Move]]:
        """The first answer, and who did not answer before it.

        Args:
            options: at least one, in the order of asking.
            deadline: of `time.monotonic`.
            moves: gets who did not answer, also where nobody does; it is what is returned.
            request_id: for the log; empty where there is none.

        Raises:
            Problem: nobody was asked, since all failed too often lately (503 `breaker_open`).
            TimeoutError: the time was over.
            Exception: the last one's; or the first one's that says that the request itself is at fault. `moves_of` gives
                the moves of each of these.
        """
        moves = [] if moves is None else moves
        try:
            return await self._first(options, deadline, moves, request_id), moves
        except Exception as error:
            with suppress(AttributeError):  # an exception of somebody else's that takes no attribute
                setattr(error, _MOVES, moves)
            raise

    async def _first(self, options: Sequence[Option[T]], deadline: float, moves: list[Move], request_id: str) -> T:
        out: set[str] = set()
        last: Exception | None = None
        whose = f"Request {request_id}: " if request_id else ""
        for number, option in enumerate(options):
            left = deadline - time.monotonic()
            if option.model in out or left <= 0:
                continue
            if self._is_open(option):
                moves.append(Move(option.program, option.model, "breaker_open"))
                log.warning("%s%s", whose, moves[-1])
                continue
            began = time.monotonic()
            allowed = left - min(MARGIN, left / 10) if number == len(options) - 1 else left * self._share
            try:
                async with asyncio.timeout(allowed):
                    answer = await option.ask()
            except Exception as error:  # isolation boundary: one option of a request
                if is_of_the_request(error):
                    raise
                last, code = error, problem_of(error).code
                if code != "deadline_exceeded" or allowed >= self._patience:
                    self._count(option, code, began)
                moves.append(Move(option.program, option.model, code))
                if is_of_the_model(error):
                    out.add(option.model)
                log.warning("%s%s (%s)", whose, moves[-1], in_words(error))
            else:
                self._count(option, None, began)
                return answer
        if last is not None:
            raise last
        if time.monotonic() >= deadline:
            raise TimeoutError
        raise Problem(503, "breaker_open", "It failed too often and is left alone for now.", retry_after=self._seconds)

    def states(self) -> dict[str, str]:
        """Breaker (`program NAME`, `model NAME`) → `closed`, `open` or `half-open`."""
        return {name: breaker.current_state for name, (breaker, _) in list(self._breakers.items())}

    def _breaker(self, name: str) -> tuple[pybreaker.CircuitBreaker, pybreaker.CircuitMemoryStorage]:
        if name not in self._breakers:
            storage = pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)
            breaker = pybreaker.CircuitBreaker(
                fail_max=self._failures,
                reset_timeout=self._seconds,  # pyright: ignore[reportArgumentType]  (a number of seconds)
                state_storage=storage,
                throw_new_error_on_trip=False,
            )
            self._breakers[name] = breaker, storage
        return self._breakers[name]

    def _is_open(self, option: Option[T]) -> bool:
        """Whether a breaker keeps it from being asked now."""
        now = datetime.now(UTC)
        storages = (self._breaker(name)[1] for name in (f"program {option.program}", f"model {option.model}"))
        return any(
            storage.state == pybreaker.STATE_OPEN
            and storage.opened_at is not None
            and (now - storage.opened_at).total_seconds() < self._seconds
            for storage in storages
        )

    def _count(self, option: Option[T], code: str | None, began: float) -> None:
        """Tell the breakers how it ended: a model's fault is not its program's, and a full queue is nobody's.

        Args: began: when it was asked, of `time.monotonic`.
        """
        if code == "model_busy":
            return
        of_model = code in ("model_failed", "model_unavailable")
        if not of_model:
            self._tell(f"program {option.program}", began, failed=code is not None)
        self._tell(f"model {option.model}", began, failed=of_model or code == "deadline_exceeded")

    def _tell(self, name: str, began: float, *, failed: bool) -> None:
        if failed:
            if began <= self._failed_at.get(name, -1.0):  # one fault ends many requests at once, and counts once
                return
            self._failed_at[name] = time.monotonic()
        # An open one says so in place of counting: what began before it opened changes nothing.
        with suppress(_Failed, pybreaker.CircuitBreakerError), self._breaker(name)[0].calling():
            if failed:
                raise _Failed
