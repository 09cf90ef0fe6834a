"""What the tasks share: when a result is reused, when a task is tried again, and who may use the accelerator.

A result is reused when the task's inputs and the code are the same: inputs are content hashes, so anything else that can
change a result is in them. A result that names objects which are no longer in the store is made again.
Retries happen here and nowhere else, and only for errors that say they may pass.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import INPUTS, NO_CACHE, CachePolicy
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.settings import get_current_settings
from pydantic import BaseModel

from dspy_toolkit.code_version import sources_sha256
from dspy_toolkit.lm import root_error
from dspy_toolkit.settings import load_settings
from dspy_toolkit.store import Ref, Store, digest

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

RETRY_DELAYS = [10, 30, 60]
LEASE_SECONDS = 60
"""A run that was killed holds its place in the queue no longer than this."""


def is_transient(task_: Any, task_run: Any, state: Any) -> bool:
    """Prefect's question before a retry: whether the error said that it may pass."""
    try:
        state.result()
    except Exception as error:  # whatever the task raised: the question is only whether it may pass
        found = root_error(error)
        return found is not None and found.retryable
    return False


def refs_in(value: Any) -> Iterator[Ref]:
    """Every `Ref` inside a value."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from refs_in(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from refs_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs_in(item)


RETRYING: dict[str, Any] = {
    "retries": len(RETRY_DELAYS),
    "retry_delay_seconds": RETRY_DELAYS,
    "retry_condition_fn": is_transient,
}


class Sources(CachePolicy):
    """All of the library's sources and the tasks'. Prefect's own TASK_SOURCE sees the lines of the wrapped function alone."""

    def compute_key(self, *args: Any, **kwargs: Any) -> str:
        return digest(sources_sha256(), sources_sha256(Path(__file__).parent, ()))


def uncached_task(**options: Any) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that runs each time, since it writes or measures."""
    return task(cache_policy=NO_CACHE, **RETRYING, **options)


def cached_task(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A task whose result is reused across runs. Its arguments and its result are JSON values.

    The plain function stays reachable as `.fn`, Prefect's task as `.task`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        inner = task(
            cache_policy=INPUTS + Sources(),
            persist_result=True,
            result_serializer="json",
            **RETRYING,
            **options,
        )(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result = inner(*args, **kwargs)
            store = Store(load_settings().objects)
            if gone := [str(ref) for ref in refs_in(result) if not store.exists(ref)]:
                log.warning("%s: %s no longer in the store; made again.", function.__name__, ", ".join(gone))
                result = inner.with_options(refresh_cache=True)(*args, **kwargs)
            return result

        call.fn, call.task = function, inner  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


def artifact_key(project: str, what: str) -> str:
    """The key of a project's artifact. Prefect takes small letters, digits and dashes; a project's name may have `_`."""
    return f"{project}-{what}".lower().replace("_", "-")


def limit_name() -> str:
    """The name of this host's limit."""
    return f"mlx-{socket.gethostname()}"


@contextmanager
def accelerator() -> Iterator[None]:
    """Wait for this host's turn: one flow at a time loads a model. The limit is made when it is missing.

    It only queues. That no two processes share the accelerator is the business of `dspy_toolkit.lm.models.lease`, which is all there
    is on a temporary server: that one never takes back the place of a run which was interrupted, and the next run would
    wait for ever.
    """
    if get_current_settings().api.url is None:
        yield
        return
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(limit_name(), 1)
    with concurrency(limit_name(), occupy=1, strict=True, lease_duration=LEASE_SECONDS):
        yield
