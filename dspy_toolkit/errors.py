"""Every error the toolkit raises on purpose.

    ToolkitError
    ├── SettingsError            a setting that is unknown, of the wrong type or out of range
    ├── ProjectError             a project that cannot be found, read or used
    ├── DatasetError             a file, row, column or split that cannot be used
    ├── MetricError              a metric that raises, or returns something that is not a score
    ├── ProgramError             a program that raises on too many rows
    ├── StoreError               the object store cannot be read or written
    │   └── ObjectMissing        an object that a Ref names is not there (a cache miss, not a fault)
    ├── ModelError               a model that cannot be had
    │   ├── ModelNotFound        no such model
    │   └── ModelTooLarge        it would not fit in memory
    ├── TrainingError            an adapter that cannot be trained
    ├── EngineError              the engine could not answer a request
    │   ├── RequestRefused       the request itself is bad; trying again changes nothing
    │   │   └── PromptTooLong    the prompt and the reply do not fit the model's context
    │   ├── EngineBusy           the queue is full                                    (retryable)
    │   ├── DeadlineExceeded     not finished in time                                 (retryable)
    │   └── EngineFailed         the engine's thread failed; the next request restarts it  (retryable)
    │       └── DeviceLost       this process can use the GPU no more; start it again
    ├── LeaseTimeout             another process holds the accelerator                (retryable)
    ├── MeasurementFailed        a run of a landscape ended without a result           (retryable)
    ├── OptimizerError           an optimizer that is unknown, or cannot run on this project
    │   └── BudgetExhausted      the LM calls or the time that were granted are spent
    ├── LedgerError              the sealed test cannot be opened
    └── RegistryError            a version, alias or artifact that cannot be found, read or written

A message says what happened, the value that was seen, and the next command. `retryable` says whether the same call may
succeed later; one layer, the orchestrator's tasks, acts on it. DSPy, LiteLLM and a user's metric wrap these in errors of
their own: `causes` goes through what is behind one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from dspy_toolkit.printable import printable, without_password


class ToolkitError(Exception):
    """Root of the tree: a fault that its message explains to the person who can mend it."""

    retryable: bool = False

    def __init__(self, *said: object) -> None:
        # Messages quote what was seen, and go to terminals, logs and pages.
        super().__init__(*(printable(without_password(each)) if isinstance(each, str) else each for each in said))


class SettingsError(ToolkitError):
    """A setting is unknown, of the wrong type or out of range."""


class ProjectError(ToolkitError):
    """A project cannot be found, read or used."""


class DatasetError(ToolkitError):
    """A file, row, column or split cannot be used."""


class MetricError(ToolkitError):
    """A metric raised, or returned something that is not a score in [0, 1]."""


class ProgramError(ToolkitError):
    """A program raised on more rows than an evaluation tolerates."""


class StoreError(ToolkitError):
    """The object store cannot be read or written."""


class ObjectMissing(StoreError):
    """The object that a `Ref` names is not in the store: make it again."""


class ModelError(ToolkitError):
    """A model cannot be had."""


class ModelNotFound(ModelError):
    """No model has that name."""


class ModelTooLarge(ModelError):
    """The model would not fit in this machine's memory."""


class TrainingError(ToolkitError):
    """An adapter cannot be trained."""


class EngineError(ToolkitError):
    """The engine could not answer a request."""


class RequestRefused(EngineError):
    """The request itself is bad; trying again changes nothing."""


class PromptTooLong(RequestRefused):
    """The prompt and the longest reply do not fit the model's context, or this machine's memory."""


class EngineBusy(EngineError):
    """The engine's queue is full."""

    retryable = True


class DeadlineExceeded(EngineError):
    """A request was not finished in its time."""

    retryable = True


class EngineFailed(EngineError):
    """The engine's thread failed; the next request starts it again."""

    retryable = True


class DeviceLost(EngineFailed):
    """This process can use the GPU no more: start it again."""

    retryable = False


class LeaseTimeout(ToolkitError):
    """Another process holds the accelerator."""

    retryable = True


class MeasurementFailed(ToolkitError):
    """A run of a landscape ended without a result."""

    retryable = True


class OptimizerError(ToolkitError):
    """An optimizer is unknown, or cannot run on this project."""


class BudgetExhausted(OptimizerError):
    """The LM calls, or the seconds, that were granted are spent."""


class LedgerError(ToolkitError):
    """The sealed test cannot be opened."""


class RegistryError(ToolkitError):
    """A version, alias or artifact cannot be found, read or written."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` itself, then the chain of its causes: `__cause__`, else `__context__`, of each.

    Each is given once, also where the chain is a circle; None has no causes.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names are like `name`: `" Did you mean lora?"`, else `" Known: a, b, c."`, else nothing."""
    known = sorted(set(known))
    if close := get_close_matches(name, known, n=3, cutoff=0.6):
        return f" Did you mean {' or '.join(close)}?"
    return f" Known: {', '.join(known)}." if known else ""
