"""Falling back: who answers for a model's name when the first who should cannot.

`lm.backend = "auto"` is MLX, then torch where the extra is installed, then the LiteLLM models under `lm.fallbacks`, in the
order given; `torch` begins with torch, `mlx` is MLX alone. A vision model is answered by the vision engine in MLX's and torch's
place, and those LiteLLM models are handed its images. Nothing leaves the machine unless it is listed, and no call whose
reply is compared with others (`staying_here`): listed models answer predictions, never an evaluation or a search.

A request moves down when a backend cannot load the model (ModelError) or fails while it generates (EngineFailed). What is
wrong with the request itself, a full queue, a deadline and an accelerator that another process holds do not move it. Of a
streamed reply, only what fails before its first piece moves. A backend that cannot load, or that fails three times with no
success in between, is out until the models are connected again; any other failure concerns its request alone. Each move is
a warning that names both, and is counted in `Chain.moves`. A response's `system_fingerprint` says who answered:
`mlx/NAME@HASH`, `torch/NAME@HASH`, or the name of the LiteLLM model; so does its `model`, and with it `response_model` in
DSPy's history, but for streamed replies, where LiteLLM writes what was asked for. DSPy's cache keeps no reply that a listed
model gave in another's place.

Not covered: a model name that LiteLLM itself serves has no fallbacks. A listed model is asked without the grammar of a
signature, which it would not understand, so its reply may fail to parse.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from dspy_toolkit.errors import DeviceLost, EngineFailed, ModelError, ToolkitError
from dspy_toolkit.lm.models.hardware import torch_installed
from dspy_toolkit.settings import LMSettings

if TYPE_CHECKING:
    from litellm.types.utils import ModelResponse

    from dspy_toolkit.lm.litellm.translation import Piece

log = logging.getLogger(__name__)

FAILURES = 3
"""Failures without a success between them after which a backend is out."""


_stays: ContextVar[bool] = ContextVar("_stays", default=False)


@contextmanager
def staying_here(stays: bool) -> Iterator[None]:
    """Within the block, ask no model of `lm.fallbacks` if `stays`: a score would be of two models."""
    token = _stays.set(stays)
    try:
        yield
    finally:
        _stays.reset(token)


def backend_order(settings: LMSettings, *, vision: bool = False) -> tuple[str, ...]:
    """What would be tried for an MLX model's name, in order: `mlx`, `torch`, and LiteLLM models by their names.

    Args:
        vision: the model reads images, by the vision engine, `vision`: MLX's other engine and torch could not take its place.
    """
    if settings.backend == "mlx":
        return ("vision",) if vision else ("mlx",)
    if settings.backend == "torch":
        return ("torch", *settings.fallbacks)
    if vision:
        return ("vision", *settings.fallbacks)
    return ("mlx", *(["torch"] if torch_installed() else []), *settings.fallbacks)


class Backend(Protocol):
    """One who may answer: LiteLLM's four ways of calling, whose `call` holds messages and parameters. All raise ToolkitError."""

    name: str
    """What a response says of who answered."""
    remote: bool
    """Whether it is another model, elsewhere."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        ...

    def open(self) -> None:
        """Check what can be checked without loading. Raises ModelError."""
        ...

    def close(self) -> None:
        """Stop, failing what still waits. Idempotent."""
        ...

    def completion(self, call: dict[str, Any]) -> ModelResponse: ...

    async def acompletion(self, call: dict[str, Any]) -> ModelResponse: ...

    def streaming(self, call: dict[str, Any]) -> Generator[Piece]: ...

    def astreaming(self, call: dict[str, Any]) -> AsyncGenerator[Piece]: ...


class Chain:
    """The backends of one model's name. Safe from any thread."""

    def __init__(self, model: str, backends: Sequence[Backend], engine_settings: dict[str, Any] | None = None) -> None:
        """Args: model: the name that is asked for; backends: in the order of trying, at least one; engine_settings: those
        that change a reply.
        """
        self.model, self.backends, self.engine_settings = model, tuple(backends), engine_settings or {}
        self.moves: Counter[tuple[str, str]] = Counter()
        """How often a request, or connecting, moved from one backend to another, by their names."""
        self.closed = False
        self._out: list[ToolkitError | None] = [None] * len(self.backends)
        self._failures = [0] * len(self.backends)
        self._failed_at = [0.0] * len(self.backends)
        self._lock = threading.Lock()

    @property
    def current(self) -> Backend:
        """The first who is not out."""
        return self.backends[self._out.index(None)]

    def open(self) -> None:
        """Find the first backend that can be opened. Raises ModelError when there is none."""
        for attempt in self.attempts():
            with attempt as backend:
                return backend.open()
        return None

    def close(self) -> None:
        """Stop all; from now on nothing moves."""
        self.closed = True
        for backend in self.backends:
            backend.close()

    def attempts(self) -> Iterator[Attempt]:
        """Who to ask, one after the other: `for attempt in …: with attempt as backend: return …`.

        An attempt swallows the error that the next one is there for, and raises any other.
        """
        failed: list[ToolkitError] = []
        if (index := self._next(-1)) is None:
            first = next(error for error in self._out if error is not None)
            raise type(first)(
                f"{first} What lm.fallbacks names answers predictions only: a score is of one model."
            ) from first
        while index is not None:
            yield Attempt(self, index, failed)
            index = self._next(index)

    def _next(self, index: int) -> int | None:
        """Who is to be asked after `index`."""
        for below in range(index + 1, len(self.backends)):
            if self._out[below] is None and not (_stays.get() and self.backends[below].remote):
                return below
        return None

    def succeeded(self, index: int) -> None:
        """A backend answered."""
        self._failures[index] = 0

    def move(self, index: int, began: float, error: ToolkitError) -> bool:
        """A backend failed: note it, and say whether the next is to be asked.

        Args:
            began: when it was asked, of `time.monotonic`.
        """
        backend = self.backends[index]
        with self._lock:
            # Closed by its owner, not by us: the process is on its way out, or the connection is.
            if not isinstance(error, ModelError | EngineFailed) or self.closed:
                return False
            if backend.closed and self._out[index] is None:
                return False
            if (below := self._next(index)) is None:
                return False
            if began > self._failed_at[index]:  # one fault ends many requests at once, and counts once
                self._failures[index] += 1
                self._failed_at[index] = time.monotonic()
            out = isinstance(error, ModelError | DeviceLost) or self._failures[index] >= FAILURES
            first = out and self._out[index] is None
            if first:
                self._out[index] = error
            self.moves[backend.name, self.backends[below].name] += 1
        how = "from now on" if out else "for this request"
        log.warning("%s cannot answer: %s (%s takes over %s.)", backend.name, error, self.backends[below].name, how)
        if first:
            # Its memory may be what the next one needs. Not here: closing waits for a step, and this may be an event loop.
            threading.Thread(target=backend.close, name=f"close {backend.name}", daemon=True).start()
        return True


class Attempt:
    """One backend's turn at one request."""

    def __init__(self, chain: Chain, index: int, failed: list[ToolkitError]) -> None:
        self.begun = False
        """Set it once a piece of the reply was handed out: then nobody else can begin it again."""
        self._chain, self._index, self._failed = chain, index, failed
        self._began = time.monotonic()

    def __enter__(self) -> Backend:
        return self._chain.backends[self._index]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self._chain.succeeded(self._index)
        if not isinstance(error, ToolkitError):
            return False
        if not self.begun and self._chain.move(self._index, self._began, error):
            self._failed.append(error)
            return True
        if self._failed and isinstance(error, ModelError | EngineFailed):
            first, *others = [*self._failed, error]
            also = " ".join(str(other) for other in others)
            raise type(first)(f"{first} What it falls back on failed as well: {also}") from error
        return False
