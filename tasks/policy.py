"""What the tasks share: when a result is reused, when a task is tried again, and who may use the accelerator.

A result is reused when a step is given the same value and the code is the same. The value is made of content hashes, so
that everything else that can change a result is in it. Retries happen here and nowhere else, and only for transient
errors (`retryable`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.settings import get_current_settings
from pydantic import BaseModel

from dspy_toolkit.code_version import sources_sha256
from dspy_toolkit.lm import root_error
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.project import check_known
from dspy_toolkit.registry.references import is_saved, is_version
from dspy_toolkit.run import Request
from dspy_toolkit.settings import load_settings
from dspy_toolkit.store import Ref, digest

RETRY_DELAYS = [10, 30, 60]
LEASE_SECONDS = 60
"""Seconds after which the slot of a killed run is free again."""


def is_transient(task_: Any, task_run: Any, state: Any) -> bool:
    """Prefect's `retry_condition_fn`: whether the error is transient."""
    try:
        state.result()
    except Exception as error:  # isolation boundary: whatever the task raised, is it transient?
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


def content_key(run: Any, parameters: dict[str, Any]) -> str:
    """The key of a cached result: the step, what it was given, and all of the library's sources and the tasks'.
    Prefect's own TASK_SOURCE would see the lines of the wrapped function alone. Prefect calls it with the task's
    context.
    """
    sources = sources_sha256(), sources_sha256(Path(__file__).parent, ())
    return f"{run.task.name}-{digest(*sources, *parameters.values())}"


def open_project(given: Any) -> Context:
    """The context of a step's value, opened anew, since a step may run in another process than the one before.

    A run that a worker started was asked for over Prefect's API, which may be open to others: it takes its project, and
    the one that a search starts from, by names and places that this machine knows.

    Raises:
        ProjectError, SettingsError: it cannot be found, or may not be named by a deployment.
    """
    settings = load_settings()
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        start = given.start if isinstance(given, Request) else None
        check_known(given.location, settings)
        if start is not None and not is_version(start) and not is_saved(start):
            check_known(start, settings)
    return Context.open(given.location, settings)


def limit_name() -> str:
    """The name of this host's limit."""
    return f"mlx-{socket.gethostname()}"


@contextmanager
def accelerator() -> Iterator[None]:
    """Wait for this host's turn: one flow at a time loads a model. The limit is made when it is missing.

    It only queues: `dspy_toolkit.lm.models.lease` keeps two processes from sharing the accelerator. On a temporary
    server only the lease counts: such a server never frees the slot of an interrupted run, and the next run would wait
    for ever.
    """
    if get_current_settings().api.url is None:
        yield
        return
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(limit_name(), 1)
    with concurrency(limit_name(), occupy=1, strict=True, lease_duration=LEASE_SECONDS):
        yield
