"""What the Prefect server must know before a worker runs: the pool, the accelerator's limit, deployments, automations.

Everything here may be done again: what is there is brought up to date. Also: runs that nobody will end are ended, and those that
died with this machine's worker are said to have crashed.

Not covered: the automations themselves (`deployments.automations`), and what a deployment is (prefect.yaml).
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil

from deployments.automations import register_automations
from deployments.places import POOL, Places
from dspy_toolkit.cli.deploy import FILE
from dspy_toolkit.errors import SettingsError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

UNFINISHED = ("RUNNING", "PENDING", "CANCELLING")
CANCEL_SECONDS = 25.0
"""For the worker to end a cancelled run."""
OVERDUE = timedelta(minutes=2)
"""A scheduled run that is later than this was missed while nothing ran."""


def tell_all(places: Places, *, pool_is_there: Callable[[], object] = lambda: None) -> None:
    """Tell the server that the environment names all that it must know.

    Args:
        places: the home and the clone that deployments are read from, and the pages that alerts go to.
        pool_is_there: is called as soon as a worker may begin.

    Raises:
        SettingsError: it does not take the password, or refuses a deployment.
    """
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        register(places)
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise SettingsError(
            f"Prefect's server at {error.request.url.host} does not take the password. Set PREFECT_API_AUTH_STRING to "
            "what PREFECT_SERVER_API_AUTH_STRING is there."
        ) from None
    pool_is_there()
    deploy(places)


def register(places: Places) -> None:
    """Tell the server all that it must know, except the deployments."""
    from tasks.policy import limit_name

    with client() as prefect:
        make_pool(prefect)
        prefect.upsert_global_concurrency_limit_by_name(limit_name(), 1)
        drop_missed(prefect)
    register_automations(places)


def make_pool(prefect: SyncPrefectClient) -> None:
    """The pool that the deployments name: its workers start each run as a process."""
    from prefect.client.schemas.actions import WorkPoolCreate

    prefect.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=_template()), overwrite=True)


def deploy(places: Places) -> None:
    """`prefect deploy --all`, for prefect.yaml and for what `dspy-toolkit deploy` wrote.

    In this process, which has Prefect loaded: a command of its own would load it again before it began.

    Raises:
        SettingsError: Prefect refuses one of them; the end of what it said.
    """
    from prefect.cli import app

    files = [places.clone / "prefect.yaml"]
    if places.settings.path(FILE).exists():
        files.append(places.settings.path(FILE))
    for file in files:
        said, code, arguments = io.StringIO(), None, sys.argv
        with chdir(places.clone), redirect_stdout(said), redirect_stderr(said):
            sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
            try:
                app()
            except SystemExit as ended:
                code = ended.code
            finally:
                sys.argv = arguments
        if code:
            last = said.getvalue().strip().splitlines()[-12:]
            raise SettingsError(f"Prefect refuses {file}:\n" + "\n".join(last))


def client() -> SyncPrefectClient:
    """A client of the server that the environment names."""
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def worker_online(places: Places) -> bool:
    """Whether this machine's worker has said lately that it is there."""
    with client() as prefect:
        answer = prefect.request("POST", "/work_pools/{name}/workers/filter", path_params={"name": POOL}, json={})
    return any(each["name"] == places.worker and each["status"] == "ONLINE" for each in answer.json())


def end_runs(*, patience: float = CANCEL_SECONDS) -> int:
    """Cancel every run that is under way, and wait for the worker to end it; the number of runs.

    Cancelled runs whose process nobody ends within `patience` seconds are written down as cancelled all the same: the processes
    are ended right after.
    """
    from prefect.states import Cancelled, Cancelling

    with client() as prefect:
        runs = unfinished(prefect)
        for run in runs:
            prefect.set_flow_run_state(run.id, Cancelling(message="`make down` was asked for."), force=True)
        until = time.monotonic() + patience
        left = runs
        while left and time.monotonic() < until:
            time.sleep(0.5)
            left = unfinished(prefect)
        for run in left:
            prefect.set_flow_run_state(run.id, Cancelled(message="Ended by `make down`."), force=True)
    return len(runs)


def crash_lost_runs(places: Places) -> int:
    """Say of the runs that this machine's worker took, and whose processes are gone, that they have crashed; how many.

    For a worker that is about to be started: one that was killed could not say it, and without this they would count as running
    until they have been silent for minutes, with the next run of their deployment waiting for them.
    """
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    with client() as prefect:
        taken = [run for run in unfinished(prefect) if run.labels.get("prefect.worker.name") == places.worker]
        # After the server was asked: what begins meanwhile is not among them.
        alive = runs_with_a_process()
        lost = [run.id for run in taken if run.id not in alive]
        for run in lost:
            with suppress(ObjectNotFound):  # somebody has removed it
                prefect.set_flow_run_state(
                    run, Crashed(message="Its process was gone when the worker was started again.")
                )
    return len(lost)


def runs_with_a_process() -> set[UUID]:
    """The runs that have a process on this machine."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # another user's, or over by now
            if run := process.environ().get("PREFECT__FLOW_RUN_ID"):
                found.add(UUID(run))
    return found


def unfinished(prefect: SyncPrefectClient) -> list[Any]:
    """The runs that some process should be at work on."""
    return _runs(prefect, UNFINISHED)


def drop_missed(prefect: SyncPrefectClient) -> int:
    """Of each deployment's runs that are overdue since nothing ran, keep the latest; how many were dropped.

    A machine that was off for three days would else begin with three nights and 72 hours of monitoring.
    """
    late: dict[Any, list[Any]] = {}
    for run in _runs(prefect, ("SCHEDULED",)):
        when = run.next_scheduled_start_time or run.expected_start_time
        if run.auto_scheduled and when and when < datetime.now(UTC) - OVERDUE:
            late.setdefault(run.deployment_id, []).append((when, run.id))
    dropped = [run for runs in late.values() for _, run in sorted(runs)[:-1]]
    for run in dropped:
        prefect.delete_flow_run(run)
    return len(dropped)


def _runs(prefect: SyncPrefectClient, states: Iterable[str]) -> list[Any]:
    """All that are in one of the states: every page, however many the server puts on one."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    wanted = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType(name) for name in states]))
    )
    found: dict[Any, Any] = {}
    read = 0
    while page := prefect.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, offset=read):
        read += len(page)
        found |= {run.id: run for run in page}
    return list(found.values())


def _template() -> dict[str, Any]:
    """A process pool's own template."""
    from prefect.workers.process import ProcessWorker

    return ProcessWorker.get_default_base_job_template()
