"""`dspy-toolkit history`: the optimizations that came to a decision, what they gained and what they cost.

Not covered: the per-row tables and the programs of a run, which MLflow's pages show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dspy_toolkit.settings import Settings
    from dspy_toolkit.tracking.history import PastRun


def history(
    *,
    project: Annotated[str, Parameter(show_default=False)] = "",
    limit: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 20,
    json: Json = False,
) -> None:
    """Show earlier optimizations, the newest first.

    Gains are in points: on validation over the baseline, on the sealed rows over the champion, with the
    interval that decided. Calls are those that compiling spent, and in brackets those that were predicted.

    Args:
        project: A project's name or file; all projects when it is not given.
        limit: At most so many runs.
        json: Print JSON with everything that is known of a run, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console
    from dspy_toolkit.registry.references import project_name
    from dspy_toolkit.settings import load_settings
    from dspy_toolkit.tracking.history import read_history

    settings = load_settings()
    show_log(settings)
    name = project_name(project) if project else None
    runs, left_out = read_history(settings, project=name, limit=limit)
    if json:
        print(json_text([run.model_dump(mode="json") for run in runs], indent=2))
        return
    console().print(_table(runs) if runs else _nothing(settings, name))
    if left_out:
        console().print(
            f"\n{left_out} older run{'s say' if left_out > 1 else ' says'} too little about what was asked for, and "
            f"{'are' if left_out > 1 else 'is'} left out."
        )


def _table(runs: tuple[PastRun, ...]) -> RenderableType:
    from dspy_toolkit.display.tables import listing

    rows = [
        (
            run.when.astimezone().strftime("%Y-%m-%d"),
            run.project,
            run.optimizer if run.winner == run.optimizer else f"{run.optimizer}: {run.winner}",
            f"{run.lm_calls:,} ({run.predicted_lm_calls:,})",
            _gain(run.val_gain),
            _gain(run.sealed_gain) + _interval(run),
            run.outcome,
        )
        for run in runs
    ]
    return listing(("when", "project", "optimizer", "calls", "val", "sealed", "outcome"), rows)


def _nothing(settings: Settings, project: str | None) -> str:
    from dspy_toolkit.errors import nearest
    from dspy_toolkit.project import project_names
    from dspy_toolkit.tracking.history import read_history

    make = "Make one:\n\n  python -m flows.optimize_program --project"
    if project is None:
        known = ", ".join(project_names(settings)) or "none"
        return f"No optimization is recorded in {settings.path()} yet. Projects here: {known}. {make} NAME"
    others = nearest(project, {run.project for run in read_history(settings).runs})
    return f"No optimization of {project!r} is recorded.{others} {make} {project}"


def _gain(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.1f}"


def _interval(run: PastRun) -> str:
    if run.sealed_low is None or run.sealed_high is None:
        return ""
    return f" [{100 * run.sealed_low:+.0f}, {100 * run.sealed_high:+.0f}]"
