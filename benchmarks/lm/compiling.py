"""A whole compilation of the router, as the flow makes it, with the same settings for every system."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from benchmarks.lm.asking import Caller, Found, Setting
from benchmarks.lm.peers import System
from benchmarks.lm.workloads import Way, Workload
from benchmarks.throughput import THREADS

COMPILATIONS = {"bootstrap": ("random", 160), "mipro": ("mipro", 300)}
"""Workload → the optimizer, and the calls that it may spend."""


def compilation(system: System, workload: Workload, way: Way, setting: Setting) -> Iterator[Found]:
    """Seconds and calls of one compilation, and what it came to on the validation rows."""
    from dspy_toolkit.datasets import from_records
    from dspy_toolkit.datasets.table import row_hash
    from dspy_toolkit.lm.connection import Connection
    from dspy_toolkit.optimizers import Budget, Problem, compile_program, probe, select
    from dspy_toolkit.projects.router import project
    from dspy_toolkit.store import Store

    optimizer, calls = COMPILATIONS[workload.name]
    budget = Budget(name="benchmark", lm_calls=max(round(calls * setting.scale), 60))
    train, val = (
        from_records(rows).assign(_row=(names := [row_hash(row) for row in rows]), _group=names)
        for rows in (setting.train, setting.val)
    )
    lm, adapter = system.lm(workload.max_tokens)
    Caller(system, workload, way, f"warm-up {workload.name}")(setting.train[-1])
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-benchmark-") as folder:
        problem = Problem(
            program=project.build(),
            train=train,
            val=val,
            spec=project.dataset,
            metric=project.metric,
            connection=Connection(lm, adapter),
            store=Store(folder),
            threads=THREADS,
        )
        profile = probe(problem)
        choice = select(profile, optimizer, budget)
        compiled = compile_program(problem, choice, profile=profile)
    said = f"{compiled.usage.lm_calls} calls, settings {choice.settings.model_dump_json()}"
    yield Found("seconds", compiled.seconds, "s", said)
    yield Found("rate", compiled.usage.lm_calls / compiled.seconds, "requests/s")
    yield Found("right", 100 * compiled.val_mean, "%", f"validation, {100 * compiled.val_baseline:.0f} % before")
