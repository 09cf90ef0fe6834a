"""A whole compilation of the router, as the flow makes it, with the same settings for every system."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from benchmarks.lm.asking import Caller, Found, Setting
from benchmarks.lm.peers import System
from benchmarks.lm.workloads import Way, Workload
from benchmarks.throughput import THREADS
from dspy_toolkit.optimizers.settings import MiproSettings, OptimizerSettings, RandomSettings

COMPILATIONS: dict[str, tuple[OptimizerSettings, int]] = {
    "bootstrap": (RandomSettings(candidates=2, max_bootstrapped_demos=4, val_rows=32), 160),
    "mipro": (MiproSettings(trials=4, demo_sets=4, slice=12, val_rows=30), 300),
}
"""Workload → the settings of an optimizer, and the calls that it may spend."""


def compilation(system: System, workload: Workload, way: Way, setting: Setting) -> Iterator[Found]:
    """Seconds and calls of one compilation, and what it came to on the validation rows."""
    from dspy_toolkit.datasets import from_records
    from dspy_toolkit.datasets.table import row_hash
    from dspy_toolkit.lm.connection import Connection
    from dspy_toolkit.optimizers import Choice, Problem, compile_program
    from dspy_toolkit.projects.router import project
    from dspy_toolkit.store import Store

    settings, calls = COMPILATIONS[workload.name]
    settings = settings.model_copy(update={"val_rows": max(round(settings.val_rows * setting.scale), 4)})
    choice = Choice(
        settings=settings,
        budget="light",
        lm_calls=calls,
        predicted_lm_calls=calls,
        reason="benchmark",
        alternatives={},
    )
    train, val = (
        from_records(rows).assign(_row=[row_hash(row) for row in rows]) for rows in (setting.train, setting.val)
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
        compiled = compile_program(problem, choice)
    yield Found(
        "seconds", compiled.seconds, "s", f"{compiled.usage.lm_calls} calls, settings {settings.model_dump_json()}"
    )
    yield Found("rate", compiled.usage.lm_calls / compiled.seconds, "requests/s")
    yield Found("right", 100 * compiled.val_mean, "%", f"validation, {100 * compiled.val_baseline:.0f} % before")
