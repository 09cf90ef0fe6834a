"""Running advised configurations here: one, to correct an estimate (`probe`), or the best few, halved by Optuna (`try_out`).

What was run is added to the user's own landscape in the home. Advice reads it, and it corrects what is predicted the more, the
more it grows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.advising.advice import Advice
from dspy_toolkit.advising.cells import Cell, Frame, measure_cell
from dspy_toolkit.advising.landscape import LOSS, matching
from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import ProjectError
from dspy_toolkit.locks import held

if TYPE_CHECKING:
    from dspy_toolkit.advising.advisor import Advisor

FIRST_SEED = 100
"""Of the user's own runs; the toolkit's have lower ones."""


@dataclass(frozen=True)
class Trial:
    """One configuration that was run here."""

    configuration: Mapping[str, Any]
    losses: tuple[float, ...]
    """One a seed; a configuration that was dropped has fewer."""
    cpu_seconds: float

    @property
    def loss(self) -> float:
        """The mean."""
        return sum(self.losses) / len(self.losses)


def own_file(home: Path, project: str) -> Path:
    """The user's own landscape."""
    return home / "landscapes" / project / "own.json"


def own_runs(home: Path, project: str) -> Frame | None:
    """The user's own runs; None while there are none."""
    import pandas as pd

    place = own_file(home, project)
    return pd.DataFrame(json.loads(place.read_text(encoding="utf-8"))) if place.is_file() else None


def _keep(home: Path, project: str, rows: list[dict[str, Any]]) -> None:
    place = own_file(home, project)
    with held(Path(f"{place}.lock"), 60.0):
        before = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else []
        write_file(place, json.dumps([*before, *rows]).encode())


def _like(advisor: Advisor, advice: Advice) -> Cell:
    """A measured cell that is like the advised situation; its configurations and seed are replaced."""
    context = advisor.context_of(advice.situation)
    found = [
        cell
        for cell in advisor.cells("full")
        if all(cell.context.get(name, value) == value for name, value in context.items())
    ]
    if not found:
        raise ProjectError(
            f"{advisor.name}: there is no cell like {dict(context)} to run. Leave --probe and --try out."
        )
    return found[0]


def _run(advisor: Advisor, cell: Cell, configuration: Mapping[str, Any], seed: int, home: Path) -> list[dict[str, Any]]:
    like = [
        each for each in cell.configurations if all(configuration.get(name) == value for name, value in each.items())
    ]
    if not like:
        wanted = dict(configuration)
        like = [
            each for other in advisor.cells("full") for each in other.configurations if each.items() <= wanted.items()
        ]
    one = cell.model_copy(update={"configurations": (dict(like[0]),), "seed": seed})
    return measure_cell(one, home / "landscapes" / "tried")


def probe(advisor: Advisor, advice: Advice, home: Path) -> Trial:
    """Run the advised configuration once here, in a process of its own.

    Raises:
        MeasurementFailed: it ended without a result.
    """
    cell = _like(advisor, advice)
    rows = _run(advisor, cell, advice.measured, FIRST_SEED, home)
    return _trial(advisor, advice, advice.measured, [rows])


def try_out(advisor: Advisor, advice: Advice, count: int, home: Path, seeds: int = 3) -> list[Trial]:
    """Run the best `count` candidates by successive halving: each with one seed, the better half with more, best first.

    Every run is added to the user's own landscape.

    Raises:
        MeasurementFailed: a run ended without a result; what ran before is kept.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    surrogate = advisor.surrogate(advice.situation)
    ranked = surrogate.rank(advisor.context_of(advice.situation), advisor.permits(advice.situation))
    candidates = [advice.measured, *(each.configuration for each in ranked if each.configuration != advice.measured)][
        :count
    ]
    cell = _like(advisor, advice)
    tried: dict[int, list[list[dict[str, Any]]]] = {}
    study = optuna.create_study(
        sampler=optuna.samplers.GridSampler({"candidate": list(range(len(candidates)))}, seed=0),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    )

    def objective(trial: optuna.Trial) -> float:
        number = trial.suggest_int("candidate", 0, len(candidates) - 1)
        so_far = None
        for step in range(seeds):
            rows = _run(advisor, cell, candidates[number], FIRST_SEED + step, home)
            _keep(home, advisor.name, rows)
            tried.setdefault(number, []).append(rows)
            so_far = _trial(advisor, advice, candidates[number], tried[number])
            trial.report(so_far.loss, step + 1)
            if trial.should_prune():
                raise optuna.TrialPruned
        assert so_far is not None  # at least one seed
        return so_far.loss

    study.optimize(objective, n_trials=len(candidates))
    trials = [_trial(advisor, advice, candidates[number], rows) for number, rows in tried.items()]
    # One that was dropped after a lucky or unlucky seed does not win over one that was run to the end.
    return sorted(trials, key=lambda each: (-len(each.losses), each.loss))


def _trial(
    advisor: Advisor, advice: Advice, configuration: Mapping[str, Any], cells: list[list[dict[str, Any]]]
) -> Trial:
    import pandas as pd

    losses, seconds = [], 0.0
    for rows in cells:
        runs: Frame = pd.DataFrame(rows)
        runs[LOSS] = advisor.objective(runs, advice.situation)
        runs = matching(runs, advisor.columns, advisor.context_of(advice.situation))
        for name in advisor.columns.configuration:
            runs = runs[runs[name] == configuration[name]]
        losses.append(float(runs[LOSS].mean()))
        seconds += float(rows[0]["cell_cpu_seconds"])
    return Trial(dict(configuration), tuple(losses), round(seconds, 2))
