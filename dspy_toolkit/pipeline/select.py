"""Choosing an optimizer, with a written reason."""

from __future__ import annotations

import logging

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.optimizers import Choice, find_budget
from dspy_toolkit.optimizers import select as choose
from dspy_toolkit.optimizers.plan.similar_runs import similar_runs
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.run import SelectInput
from dspy_toolkit.tracking.history import PastRun, read_history

log = logging.getLogger(__name__)


def select(context: Context, given: SelectInput) -> Choice:
    """Choose by the profile, the budget and similar earlier runs. It costs no calls, so it is never cached.

    Raises:
        OptimizerError: no such optimizer or budget, or none can run within it.
    """
    optimizer, budget = effective_options(context, given.optimizer, given.budget)
    return choose(
        given.profile, optimizer, find_budget(budget), prior_runs(context, given), context.settings.optimize.gepa
    )


def effective_options(context: Context, optimizer: str | None, budget: str | None) -> tuple[str, str]:
    """(optimizer, budget): what is None is taken from the project, then from the settings."""
    project, defaults = context.project, context.settings.optimize
    asked = optimizer or (project.optimizer if project.optimizer != "auto" else defaults.optimizer)
    return asked, budget or project.budget or defaults.budget


def prior_runs(context: Context, given: SelectInput) -> tuple[PastRun, ...]:
    """Similar earlier runs; none for an optimizer that was asked for by name.

    They make a choice better, and their absence must not cost the run: a history that cannot be read is a warning.
    """
    if effective_options(context, given.optimizer, given.budget)[0] not in ("auto", "race"):
        return ()
    try:
        runs = read_history(context.settings).runs
    except RegistryError as error:
        log.warning("Chosen without the history of earlier runs. %s", error)
        return ()
    return similar_runs(runs, given.profile, given.program.model, given.program.reflection_model)
