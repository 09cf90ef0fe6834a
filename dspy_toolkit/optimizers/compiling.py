"""Compiling a program as chosen: the one door to the three optimizers.

Given the training and validation rows only. What comes back is a program's state as JSON, and whether anything changed:
a candidate that is not better than the program as it came, on the same validation rows, is not a change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dspy_toolkit.datasets import DatasetSpec, examples
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.metrics import Metric
from dspy_toolkit.optimizers import bootstrap, gepa, mipro
from dspy_toolkit.optimizers.plan import Choice, Optimizer
from dspy_toolkit.optimizers.sampling import sample_rows
from dspy_toolkit.optimizers.search import Progress, Search, Stopwatch, Trial
from dspy_toolkit.optimizers.starting import Start
from dspy_toolkit.optimizers.states import prompt_of, state_of
from dspy_toolkit.signatures import fields_of
from dspy_toolkit.store import Ref, Store, Value

if TYPE_CHECKING:
    import dspy
    import pandas as pd

SEARCHES = {"bootstrap": bootstrap.search, "mipro": mipro.search, "gepa": gepa.search}


class ArmResult(Value):
    """How one arm of a race fared."""

    name: str
    verdict: Literal["won", "dropped", "left out", "failed"]
    reason: str
    """One sentence, with the numbers."""
    mean: float = 0.0
    """Of its best program on `items` validation rows that no arm chose by."""
    items: int = 0
    rounds: int = 0
    """That it took part in."""
    lm_calls: int = 0
    """Logical."""


class Compiled(Value):
    """What a compilation found."""

    optimizer: Optimizer
    program: Ref
    """The program's state (DSPy's JSON)."""
    changed: bool
    """Whether its prompt differs from that of the program as it came."""
    val_mean: float = 0.0
    """Of this program, on the validation rows that candidates were compared on."""
    val_baseline: float = 0.0
    """Of the program as it came, on the same rows."""
    lm_calls: int = 0
    physical_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float
    exhausted: bool = False
    """Whether the budget ran out before the search was through."""
    trials: tuple[Trial, ...] = ()
    """Empty when nothing was scored: `val_mean` and `val_baseline` say nothing then."""
    arms: tuple[ArmResult, ...] = ()
    """Of a race, the winner first; empty otherwise."""

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.optimizer == "none":
            return "Nothing changed: there was nothing to gain."
        if not self.trials:
            return f"Nothing changed: {self.lm_calls} LM calls were spent before the program as it is was scored."
        if not self.changed:
            best = max((t.val_mean for t in self.trials[1:]), default=None)
            tried = (
                "no candidate got as far as validation" if best is None else f"the best candidate reached {best:.1%}"
            )
            return f"Nothing changed: {tried}, the program as it is {self.val_baseline:.1%} on validation."
        return f"{self.optimizer} went from {self.val_baseline:.1%} to {self.val_mean:.1%} on validation."


def compile_program(
    program: dspy.Module,
    choice: Choice,
    train: pd.DataFrame,
    val: pd.DataFrame,
    spec: DatasetSpec,
    metric: Metric,
    connection: Connection,
    store: Store,
    *,
    start: Start | None = None,
    seed: int = 0,
    threads: int = 16,
    progress: Progress | None = None,
) -> Compiled:
    """Search for a better prompt within `choice.lm_calls` logical calls.

    Args:
        program: as it came; it is not changed.
        train, val: two splits. The third is not asked for.
        start: a program from elsewhere: one more candidate, and what the search starts from where it is the better one.

    Raises:
        MetricError: the metric fails on more than a tenth of the rows.
        ToolkitError: the model failed. Calling again repeats what was done from the cache of replies, and goes on.
    """
    watch = Stopwatch()
    if choice.optimizer == "none":
        same = store.save_json(state_of(program))
        return Compiled(optimizer="none", program=same, changed=False, seconds=float(watch))
    fields = fields_of(program)
    compared = sample_rows(val, choice.val_rows, seed)
    search = Search(
        program=program,
        train=examples(train, spec, fields),
        val=examples(compared, spec, fields),
        val_keys=[str(key) for key in compared["_row"]],
        metric=metric,
        connection=connection,
        seed=seed,
        threads=threads,
        lm_calls=choice.lm_calls,
        progress=progress,
    )
    if start is not None and prompt_of(start.program) != prompt_of(program):
        search.begin_from(start.program, start.label)
    if not search.exhausted:
        SEARCHES[choice.optimizer](search, choice.settings)
    if not search.trials and not search.exhausted:
        search.score(program.deepcopy(), "unchanged")
    best = search.best or program
    meter = search.meter
    return Compiled(
        optimizer=choice.optimizer,
        program=store.save_json(state_of(best)),
        changed=prompt_of(best) != prompt_of(program),
        val_mean=max(search.best_mean, 0.0),
        val_baseline=search.baseline,
        lm_calls=meter.logical,
        physical_calls=meter.physical,
        prompt_tokens=meter.prompt_tokens,
        completion_tokens=meter.completion_tokens,
        seconds=float(watch),
        exhausted=search.exhausted or meter.left == 0,
        trials=tuple(search.trials),
    )
