"""The candidate against the champion."""

from __future__ import annotations

from prefect.artifacts import create_table_artifact

from dspy_toolkit.datasets import Dataset
from dspy_toolkit.display.progress import step
from dspy_toolkit.optimizers import Choice, Compiled
from dspy_toolkit.pipeline.compare import Challenge
from dspy_toolkit.pipeline.workbench import Workbench
from dspy_toolkit.project import ChampionPart, ProgramPart, StartPart
from dspy_toolkit.settings import load_settings
from tasks.policy import accelerator, artifact_key, cached_task


def compare_with_champion(
    program: ProgramPart,
    champion: ChampionPart,
    choice: Choice,
    candidate: Compiled,
    dataset: Dataset,
    start: StartPart | None = None,
) -> Challenge:
    """Validation first; the sealed rows only for a candidate that has earned it, and every opening in the ledger."""
    settings = Workbench.open(program.location, load_settings()).settings
    # What else the verdict depends on is an input of its own, so that the cache sees it.
    rate = settings.optimize.false_promotion_rate
    return _challenge(program, champion, choice.unexplained, candidate, dataset, start, rate)


@cached_task(task_run_name="compare {program.project} with its champion")
def _challenge(
    program: ProgramPart,
    champion: ChampionPart,
    choice: Choice,
    candidate: Compiled,
    dataset: Dataset,
    start: StartPart | None,
    false_promotion_rate: float,
) -> Challenge:
    bench = Workbench.open(program.location, load_settings())
    with accelerator(), step("compare") as reporter:
        challenged = bench.challenge(champion, candidate, choice, dataset, reporter.calls, start)
    reports = {"candidate, val": challenged.candidate_val, "champion, val": challenged.champion_val}
    if (comparison := challenged.comparison) is not None:
        reports |= {"candidate, sealed": comparison.candidate, "champion, sealed": comparison.champion}
    rows = [
        {"what": name, "mean": f"{report.mean:.1%}", "95 %": f"{report.low:.1%} to {report.high:.1%}", "rows": report.n}
        for name, report in reports.items()
        if report is not None
    ]
    rows += [
        {"what": f"{name}, sealed", "mean": f"{mean:.1%}", "95 %": "", "rows": ""}
        for name, mean in challenged.references.items()
    ]
    create_table_artifact(rows, key=artifact_key(program.project, "comparison"), description=challenged.reason)
    return challenged
