"""What a drilled process does: one optimization of a small project on a fake model, with a fault on the way.

It calls the pipeline's own functions. In Prefect's place, whose start takes longer than the whole run, results of the steps
that the flow caches are kept in `HOME/steps`; the drills that need Prefect itself run the real command.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from dspy_toolkit.durable import watched, write_file
from dspy_toolkit.gate.ledger import Ledger
from dspy_toolkit.optimizers import Compiled, Profile
from dspy_toolkit.pipeline.compare import LEDGER, compare
from dspy_toolkit.pipeline.compile import compile  # noqa: A004
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.probe import probe
from dspy_toolkit.pipeline.record import record
from dspy_toolkit.pipeline.release import release, release_baseline, undo_release
from dspy_toolkit.pipeline.resolve import resolve
from dspy_toolkit.pipeline.select import select
from dspy_toolkit.project import ChampionPart
from dspy_toolkit.registry import Decision, champion, find_version, list_versions
from dspy_toolkit.run import CompareInput, Comparison, CompileInput, Request, Run, SearchInput, SelectInput
from dspy_toolkit.settings import Settings, load_settings
from dspy_toolkit.store import Ref, digest
from dspy_toolkit.tracking.mlflow_client import connect, experiment_id
from tests.drills.power import PowerCut

STEPS = ("resolve", "prepare", "probe", "select", "release_baseline", "compile", "compare", "release", "record")
Reached = Callable[[str], None]
"""Told `before STEP` and `after STEP`."""


def optimize(location: str, reached: Reached = lambda where: None) -> Decision:
    """All steps, in the order of `flows.optimize_program`."""
    settings = load_settings()

    def step(function: Callable[[Context, Any], Any], given: Any, kept_as: Any = None) -> Any:
        name = function.__name__
        reached(f"before {name}")
        context = Context.open(location, settings)
        found = function(context, given) if kept_as is None else _kept(context, function, given, kept_as)
        reached(f"after {name}")
        return found

    from dspy_toolkit.datasets import Dataset

    ref = step(resolve, Request(location=location))
    dataset = step(prepare, ref.data, Dataset)
    search = SearchInput.of(ref, dataset)
    profile = step(probe, search.without_start, Profile)
    choice = step(select, SelectInput(**dict(search), profile=profile, optimizer="bootstrap", budget="120"))
    ref = step(release_baseline, ref)
    compiled = step(compile, CompileInput(**dict(search), choice=choice, profile=profile).unexplained, Compiled)
    comparison = step(compare, CompareInput.of(ref, dataset, choice, compiled), Comparison)
    run = Run(
        name="optimize questions",
        ref=ref,
        dataset=dataset,
        profile=profile,
        choice=choice,
        compiled=compiled,
        comparison=comparison,
    )
    reached("before release")
    released = release(Context.open(location, settings), run)
    try:
        reached("after release")
        step(record, released)
    except BaseException:
        undo_release(Context.open(location, settings), released.decision)
        raise
    return released.decision


def _kept(context: Context, function: Callable[[Context, Any], Any], given: Any, kind: Any) -> Any:
    path = context.settings.path("steps", f"{function.__name__}-{digest(given)}.json")
    if path.exists():
        found = kind.model_validate_json(path.read_bytes())
        if all(context.store.exists(ref) for ref in refs_in(found.model_dump())):
            return found
    found = function(context, given)
    write_file(path, found.model_dump_json().encode())
    return found


def refs_in(value: Any) -> Iterator[Ref]:
    if isinstance(value, dict):
        if value.keys() == {"sha256", "kind"}:
            yield Ref(**value)
        for item in value.values():
            yield from refs_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs_in(item)


@contextmanager
def faulty(fault: dict[str, Any]) -> Iterator[Reached]:
    """Do what `fault` says, to this process.

    at: where: the beginning or end of a step or of what `release` calls (`before release`, `after promote`,
        `after promote of the baseline`).
    write: where: the number of a step of a durable write, from 0.
    ask: where: the number of a request to the model, from 0; see `before_asking`.
    signal, readonly (a folder), wait (a folder), errno: what; `wait` goes on when the test says so.
    power: watch what a cut of the power would leave, and print it.
    """
    from dspy_toolkit.pipeline import release as module

    steps = 0
    power = PowerCut() if fault.get("power") else None

    def reached(where: str) -> None:
        if where == fault.get("at"):
            happen(fault)

    def watch(step: str, path: Path) -> None:
        nonlocal steps
        steps += 1
        if power is not None:
            power(step, path)
        if steps - 1 == fault.get("write"):
            happen(fault)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            first = any(getattr(value, "optimizer", "") == "none" for value in arguments)
            first = first or options.get("compared_with") == ChampionPart()
            name = f"{function.__name__}{' of the baseline' if first else ''}"
            reached(f"before {name}")
            found = function(*arguments, **options)
            reached(f"after {name}")
            return found

        return call

    inside = {name: getattr(module, name) for name in ("save_version", "promote")}
    try:
        for name, function in inside.items():
            setattr(module, name, around(function))
        with watched(watch):
            yield reached
    finally:
        for name, function in inside.items():
            setattr(module, name, function)
        print(f"WRITES {steps}", flush=True)
        if power is not None:
            print(f"POWER {power.writes} writes, torn {power.torn}, lost {power.lost()}", flush=True)


def happen(fault: dict[str, Any]) -> None:
    if folder := fault.get("wait"):
        Path(folder, "reached").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.02)
    if folder := fault.get("readonly"):
        make_readonly(Path(folder))
    if number := fault.get("signal"):
        os.kill(os.getpid(), number)
        time.sleep(10)  # a signal that a handler takes comes within
    if number := fault.get("errno"):
        raise OSError(number, os.strerror(number))


def before_asking(answer: Callable[[Any], Any], fault: dict[str, Any]) -> Callable[[Any], Any]:
    """`answer`, with the fault at its request number `ask`."""
    asked = count()

    def reply(request: Any) -> Any:
        if next(asked) == fault.get("ask"):
            happen(fault)
        return answer(request)

    return reply


def make_readonly(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def make_writable(folder: Path) -> None:
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def end_of(settings: Settings, project: str) -> dict[str, Any]:
    """What a run leaves for good; of two homes, one of which was disturbed, it is the same. Empty where nothing is live."""
    if (version := champion(settings, project).version) is None:
        return {}
    live = find_version(settings, f"{project}@{version}")
    versions = {version.version: version for version in list_versions(settings, project)}
    client = connect(settings)
    runs = {run.info.run_id: run for run in client.search_runs([experiment_id(client, settings)], max_results=1000)}
    run = runs[live.run_id]
    before = versions[live.previous] if live.previous is not None else None
    objects = [path for path in Path(settings.objects).rglob("*") if path.is_file() and path.name.count(".") == 1]
    return {
        "champion": live.program_sha256,
        "replaced": before and before.program_sha256,
        "outcome": run.data.tags.get("outcome"),
        "recorded": [run.info.status, sorted(entry.path for entry in client.list_artifacts(run.info.run_id))],
        "numbers": {
            name: value for name, value in run.data.metrics.items() if not any(part in name for part in PHYSICAL)
        },
        "left running": sum(each.info.status not in ("FINISHED", "FAILED") for each in runs.values()),
        "openings": [
            [opening.grant.candidate, opening.grant.champion, opening.outcome]
            for opening in Ledger(settings.path(LEDGER)).openings()
        ],
        "damaged objects": sum(hashlib.sha256(path.read_bytes()).hexdigest() != path.stem for path in objects),
        "placements": hashlib.sha256(settings.path("splits", f"{project}.jsonl").read_bytes()).hexdigest(),
    }


PHYSICAL = ("seconds", "physical", "completion_tokens")
"""Of a metric's name: what was really spent, which the cache of replies changes in a run that goes on."""
NO_SPACE = errno.ENOSPC
KILL, TERMINATE = int(signal.SIGKILL), int(signal.SIGTERM)
