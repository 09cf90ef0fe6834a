"""Compiling a program as chosen: everything that searches comes through here.

It sees the training and validation rows only, and returns a program's state as JSON and whether its prompt changed: a
candidate that is not better than the baseline on the same validation rows is dropped.
"""

from __future__ import annotations

import time
from random import Random
from typing import Literal

from dspy_toolkit.errors import BudgetExhausted, OptimizerError
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.optimizers.choice import Choice, run_cost
from dspy_toolkit.optimizers.generators.catalog import ENSEMBLE, GENERATORS, START, family
from dspy_toolkit.optimizers.generators.workshop import Progress, Workshop
from dspy_toolkit.optimizers.pool.entry import BASELINE, Entry, Family
from dspy_toolkit.optimizers.pool.pool import Pool
from dspy_toolkit.optimizers.pool.scoring import Runner, scoring
from dspy_toolkit.optimizers.problem import Problem
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.settings import NoSearch
from dspy_toolkit.optimizers.states import prompt_of, state_of
from dspy_toolkit.store import Frozen, Ref, digest

KEPT = 4
"""Candidates, the best of a search, that the next night starts from."""


class Trial(Frozen):
    """One candidate."""

    label: str
    val_mean: float
    """On the validation rows that it was scored on."""
    rows: int
    """How many these are: the first of the sample."""
    expected: float
    """Its expected score on all rows, in [0, 1]: few rows say little, so their mean is drawn towards that of the others."""
    lm_calls: int
    """Logical calls spent until it had been scored."""
    generator: str = ""
    """What made it."""
    prompt: str = ""
    """A hash of the part of it that reaches the model."""
    tokens: float = 0.0
    """Prompt tokens of one run, on average."""
    seconds: float = 0.0
    """Latency of one run, on average, from the calls that no cache answered; 0 when the cache answered all."""


class GeneratorResult(Frozen):
    """How the candidates of one generator fared."""

    name: str
    verdict: Literal["won", "behind", "failed", "not asked"]
    reason: str
    """One sentence, with the numbers."""
    candidates: int = 0
    mean: float = 0.0
    """Of its best candidate."""
    rows: int = 0
    """Validation rows that this one was scored on."""
    lm_calls: int = 0
    """Logical, for making and scoring its candidates."""


class Best(Frozen):
    """One of the best candidates."""

    state: Ref
    gain: float
    """Its expected gain over the baseline, shrunk by how few validation rows it was scored on."""


class Compiled(Frozen):
    """What a compilation found."""

    optimizer: str
    """What was asked for."""
    winner: str = BASELINE
    """The generator that made the program; `baseline` where nothing is better."""
    program: Ref
    """The program's state (DSPy's JSON)."""
    changed: bool
    """Whether its prompt differs from that of the baseline."""
    val_mean: float = 0.0
    """Mean score of this program on the validation rows of the last rung that was reached."""
    val_baseline: float = 0.0
    """Mean score of the baseline on the same rows."""
    rows: int = 0
    """How many these are."""
    usage: Usage = Usage()
    seconds: float
    """Wall time."""
    exhausted: bool = False
    """Whether the budget ran out in the middle of something."""
    trials: tuple[Trial, ...] = ()
    """Every candidate in the order of making; empty when nothing was scored: `val_mean` and `val_baseline` say nothing then."""
    generators: tuple[GeneratorResult, ...] = ()
    """The winner first; the baseline is one of them."""
    best: tuple[Best, ...] = ()
    """The best candidates, for the next search to start from."""

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.optimizer == "none":
            return "Nothing changed: there was nothing to gain."
        if not self.trials:
            return f"Nothing changed: {self.usage.lm_calls} LM calls were spent before the baseline was scored."
        tried = len(self.trials) - 1
        if not self.changed:
            if not tried:
                return "Nothing changed: no candidate got as far as validation."
            best = max(
                trial.val_mean for trial in self.trials[1:] if trial.rows == max(t.rows for t in self.trials[1:])
            )
            return (
                f"Nothing changed: of {tried} candidates the best reached {best:.1%}, the baseline "
                f"{self.val_baseline:.1%} on validation."
            )
        return (
            f"{self.winner} went from {self.val_baseline:.1%} to {self.val_mean:.1%} on {self.rows} validation rows, the "
            f"best of {tried} candidates."
        )


def compile_program(
    problem: Problem,
    choice: Choice,
    *,
    profile: Profile | None = None,
    progress: Progress | None = None,
    elsewhere: Runner | None = None,
) -> Compiled:
    """Search for a better prompt within `choice.lm_calls` logical calls.

    Args:
        profile: the one that `choice` was made from.
        elsewhere: scores candidates on workers.

    Raises:
        MetricError: the metric fails on more than a tenth of the rows.
        ToolkitError: the model failed. A second call takes what was done from the cache of replies, and goes on.
    """
    began = time.monotonic()
    if isinstance(choice.settings, NoSearch):
        same = problem.store.save_json(state_of(problem.program))
        return Compiled(optimizer="none", program=same, changed=False, seconds=time.monotonic() - began)
    if profile is None:
        raise OptimizerError("A search needs the profile that it was chosen by.")
    shop = Workshop(problem, profile, choice.settings, choice.lm_calls, choice.usd, progress)
    baseline = Entry(BASELINE, BASELINE, problem.program.deepcopy())
    starts = {digest(prompt_of(start.program)) for start in problem.starts}
    names = (START, *choice.settings.generators) if problem.starts else choice.settings.generators
    if elsewhere is not None:
        names = tuple(name for name in names if name == START or not GENERATORS[name].at_home)
        if not names:
            raise OptimizerError(
                f"What {choice.optimizer} makes is in this home, where workers do not look. Leave out --workers."
            )
    if len(choice.settings.generators) > 1 and profile.predictors == 1:
        names = (*names, ENSEMBLE)
    pool = Pool(
        baseline=baseline,
        families=[family(name, shop) for name in names],
        score=scoring(problem, shop.lm, elsewhere),
        spent=lambda: shop.meter.usage.lm_calls,
        budget=choice.lm_calls,
        calls_per_run=run_cost(profile),
        steps=choice.settings.rungs,
        random=Random(problem.seed),
        say=shop.say,
        known={digest(prompt_of(problem.program)), *(problem.tried - starts)},
        prompt=lambda entry: digest(prompt_of(entry.program)),
    )
    shop.pool = pool
    try:
        best = pool.run()
    except BudgetExhausted:
        same = problem.store.save_json(state_of(problem.program))
        usage = shop.meter.usage
        return Compiled(
            optimizer=choice.optimizer, program=same, changed=False, usage=usage, seconds=time.monotonic() - began,
            exhausted=True,
        )  # fmt: skip
    shared = min(best.rows, baseline.rows)
    return Compiled(
        optimizer=choice.optimizer,
        winner=best.family,
        program=problem.store.save_json(state_of(best.program)),
        changed=best is not baseline,
        val_mean=best.mean(shared),
        val_baseline=baseline.mean(shared),
        rows=shared,
        usage=shop.meter.usage,
        seconds=time.monotonic() - began,
        exhausted=pool.exhausted or shop.exhausted,
        trials=tuple(_trial(pool, entry) for entry in sorted(pool.entries, key=lambda entry: entry.number)),
        generators=_results(pool, best),
        best=tuple(
            Best(state=problem.store.save_json(state_of(entry.program)), gain=pool.expected(entry))
            for entry in sorted(pool.entries, key=lambda entry: (-pool.expected(entry), entry.number))[:KEPT]
            if entry is not baseline and pool.expected(entry) > 0
        ),
    )


def _trial(pool: Pool, entry: Entry) -> Trial:
    return Trial(
        label=entry.label,
        val_mean=entry.mean(),
        rows=entry.rows,
        expected=min(max(pool.baseline.mean() + pool.expected(entry), 0.0), 1.0),
        lm_calls=entry.lm_calls,
        generator=entry.family,
        prompt=digest(prompt_of(entry.program)),
        tokens=entry.tokens,
        seconds=entry.seconds,
    )


def _results(pool: Pool, best: Entry) -> tuple[GeneratorResult, ...]:
    found = [_result(pool, each, best) for each in pool.families]
    base = pool.baseline
    verdict = "won" if best is base else "behind"
    said = f"{base.mean():.1%} on {base.rows} rows."
    found.append(GeneratorResult(name=BASELINE, verdict=verdict, reason=said, mean=base.mean(), rows=base.rows))
    return tuple(sorted(found, key=lambda each: (each.verdict != "won", -each.rows, -each.mean)))


def _result(pool: Pool, made: Family, best: Entry) -> GeneratorResult:
    own = [entry for entry in pool.entries if entry.family == made.name]
    spent = made.spent + made.scoring
    if not own:
        verdict = "failed" if made.ended.startswith("It failed") else "behind" if spent else "not asked"
        reason = made.ended or ("It made none that was new." if spent else "Others promised more for their cost.")
        return GeneratorResult(name=made.name, verdict=verdict, reason=reason, lm_calls=spent)
    top = best if best in own else min(own, key=lambda entry: (-entry.rows, -entry.mean(), entry.number))
    candidates = "1 candidate" if len(own) == 1 else f"{len(own)} candidates"
    reason = f"{candidates}; the best, {top.label}: {top.mean():.1%} on {top.rows} rows."
    if made.ended.startswith("It failed"):
        reason += f" {made.ended}"
    return GeneratorResult(
        name=made.name,
        verdict="won" if best.family == made.name else "behind",
        reason=reason,
        candidates=len(own),
        mean=top.mean(),
        rows=top.rows,
        lm_calls=spent,
    )
