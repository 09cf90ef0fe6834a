"""What a search works on: the program, and the rows of two splits, read from the store."""

from __future__ import annotations

from dspy_toolkit.errors import ModelNotFound
from dspy_toolkit.lm.models.weights import PREFIX, find_weights
from dspy_toolkit.optimizers import Problem
from dspy_toolkit.optimizers.problem import Trainable
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.source import start_programs
from dspy_toolkit.run import SearchInput

NIGHT = 7919
"""How far apart the seeds of two nights are."""


def problem_of(context: Context, given: SearchInput) -> Problem:
    """The problem behind `given`. Raises ObjectMissing when a split is no longer in the store."""
    project, store, optimize = context.project, context.store, context.settings.optimize
    return Problem(
        program=project.build(),
        train=store.read_frame(given.train),
        val=store.read_frame(given.val),
        spec=project.dataset,
        metric=project.metric,
        connection=context.connection,
        store=store,
        trainable=_trainable(context),
        starts=start_programs(given.start, given.night, project, store),
        tried=frozenset(store.read_json(given.night.tried) if given.night.tried else ()),
        # A prime apart, so that one seed's nights are not another's.
        seed=optimize.seed + NIGHT * given.night.number,
        threads=optimize.threads,
    )


def _trainable(context: Context) -> Trainable | None:
    """The task's model, where it is an MLX model that this machine's engine runs as it is."""
    settings = context.settings
    if not context.connection.model.startswith(PREFIX) or settings.lm.backend not in ("auto", "mlx"):
        return None
    try:
        weights = find_weights(settings.lm.model, settings.path())
    except ModelNotFound:  # an engine that was handed over: nothing is known of its weights
        return None
    if weights.adapter is not None:
        return None
    return Trainable(weights, settings.path(), settings.lm.lease != "share", settings.lm.lease_seconds)
