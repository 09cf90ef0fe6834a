"""The pipeline's steps as Prefect's tasks: `as_task` wraps each, and nothing else is done here.

A task loads its project itself, since it may run in another process than the one before; its input and result are JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any, Protocol, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from dspy_toolkit.display.progress import step
from dspy_toolkit.pipeline.compare import compare
from dspy_toolkit.pipeline.compile import compile, score_candidate  # noqa: A004
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.probe import probe
from dspy_toolkit.pipeline.record import record, record_compilation
from dspy_toolkit.pipeline.release import release, release_baseline
from dspy_toolkit.pipeline.resolve import resolve
from dspy_toolkit.pipeline.select import select
from dspy_toolkit.settings import load_settings
from dspy_toolkit.store import Store
from dspy_toolkit.tracking.traces import step_trace
from tasks import show
from tasks.policy import RETRYING, accelerator, content_key, open_project, refs_in

log = logging.getLogger(__name__)


class Located(Protocol):
    """A value that says which project it belongs to."""

    @property
    def location(self) -> str: ...

    @property
    def project(self) -> str: ...


Given = TypeVar("Given", bound=Located)
Found = TypeVar("Found")


def as_task(
    function: Callable[..., Found],
    name: str,
    *,
    cached: bool = False,
    asks_model: bool = False,
    queued: bool = True,
    shown: str = "",
    after: Callable[[Context, Any, Any], None] | None = None,
) -> Task[[Any], Found]:
    """A step as a task of one value.

    Args:
        function: of a context and the value; with `asks_model` of a progress callback too.
        name: the task runs' name; `{given}` is the value.
        cached: reuse the result for an equal value, across runs and processes.
        asks_model: wait for this host's turn at the accelerator, and show progress.
        queued: false where the models are asked by other runs, which wait themselves.
        shown: the word for it on the terminal and Prefect's pages, if not the function's name; `{given}` is the value.
        after: told the context, the value and the result, where the step really ran.
    """

    def run(given: Any) -> Found:
        context, word = open_project(given), shown.format(given=given) or function.__name__
        # Rows of the comparison are sealed, and a trace is read.
        texts = function is not compare or context.settings.observe.show_sealed_rows
        waiting = accelerator() if asks_model and queued else nullcontext()
        with waiting, step(word) as reporter, step_trace(word, texts=texts):
            if asks_model:
                with show.progress(given.project, word, reporter):
                    found = function(context, given, reporter.calls)
            else:
                found = function(context, given)
        if after is not None:
            after(context, given, found)
        return found

    run.__doc__ = function.__doc__
    caching: dict[str, Any] = {"cache_policy": NO_CACHE}
    if cached:
        caching = {"cache_key_fn": content_key, "persist_result": True, "result_serializer": "json"}
    return task(run, name=function.__name__, task_run_name=name, **RETRYING, **caching)


def still_there(cached: Task[[Given], Found]) -> Callable[[Given], Found]:
    """The task, run again where its cached result names objects that are no longer in the store."""

    @wraps(cached.fn)
    def call(given: Given) -> Found:
        found = cached(given)
        store = Store(load_settings().objects)
        if gone := [str(ref) for ref in refs_in(found) if not store.exists(ref)]:
            log.warning("%s: %s no longer in the store; made again.", cached.name, ", ".join(gone))
            found = cached.with_options(refresh_cache=True)(given)
        return found

    call.task = cached  # pyright: ignore[reportAttributeAccessIssue]
    return call


resolve_project = as_task(resolve, "resolve {given.location}")
prepare_dataset = still_there(as_task(prepare, "prepare {given.project}", cached=True, after=show.dataset))
probe_program = still_there(as_task(probe, "probe {given.project}", cached=True, asks_model=True))
select_optimizer = as_task(select, "select an optimizer for {given.project}", after=show.choice)
release_baseline_version = as_task(release_baseline, "release the baseline of {given.name}", shown="baseline")
score_one = as_task(
    score_candidate, "score {given.job.label} for {given.project}", cached=True, asks_model=True, shown="score"
)
compare_programs = still_there(
    as_task(compare, "compare {given.project} with its champion", cached=True, asks_model=True, after=show.comparison)
)
release_program = as_task(release, "release {given.project}")
record_run = as_task(record, "record {given.project}", after=show.run)
record_comparison = as_task(
    record_compilation, "record what was compared for {given.project}", shown="record", after=show.pool
)

compile_one = still_there(
    as_task(compile, "compile {given.project} with {given.choice.optimizer}", cached=True, asks_model=True)
)
