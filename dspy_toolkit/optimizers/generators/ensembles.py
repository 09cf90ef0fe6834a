"""Ensembles: the best candidates of the pool answer together (`dspy_toolkit.lm.ensembles`).

The pool's last generator: it has nothing to make them of before others have climbed. Each candidate is the three best so far, by the
majority of their answers and, where all score the labels of the last output, by the mean of their probabilities. Making one costs
nothing; a run costs as many calls as there are members, and is charged so.

For programs of one predictor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from dspy_toolkit.lm.ensembles import Ensemble, Member, Rule, ensemble_of
from dspy_toolkit.lm.label_rules import label_rules_of
from dspy_toolkit.lm.levers import levers_of, pull
from dspy_toolkit.optimizers.choice import Infeasible, run_cost
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import WAIT, Cost, Entry, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import signature_of, state_of
from dspy_toolkit.project.states import predictor_states

if TYPE_CHECKING:
    import dspy

SIZE = 3
"""Members: with fewer the first always decides."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """Nothing but scoring, which the step stands for: the pool keeps calls for it."""
    if profile.predictors > 1:
        return Infeasible(reason=f"ensembles are of programs with one predictor; this one has {profile.predictors}")
    return Cost(0, SIZE * settings.rungs[-1] * run_cost(profile))


def candidates(shop: Workshop) -> Iterator[Made | None]:
    """The best so far together; again when another one leads."""
    while True:
        best = [] if shop.pool is None else able(shop.pool.entries, shop.pool.expected)[:SIZE]
        if len(best) == SIZE:
            programs = [entry.program for entry in best]
            for rule in rules(programs):
                what = "the mean of the labels' probabilities" if rule == "mean" else "the majority"
                yield Made(together(programs, rule), f"{what} of {SIZE} candidates", runs=SIZE)
        yield WAIT


def runs_of(program: dspy.Module) -> int:
    """How many runs of a program of single prompts one run of it costs as much as."""
    return max((len(each.members) for part in program.predictors() if (each := ensemble_of(part))), default=1)


def able(entries: Sequence[Entry], expected: Callable[[Entry], float]) -> list[Entry]:
    """Those that can be members, the best first: single prompts. Args: expected: gain over the baseline."""
    single = [entry for entry in entries if runs_of(entry.program) == 1]
    return sorted(single, key=lambda entry: (-expected(entry), entry.tokens, entry.number))


def rules(programs: Sequence[dspy.Module]) -> tuple[Rule, ...]:
    """How these can answer together."""
    (predictor,) = programs[0].predictors()
    last = list(signature_of(predictor).output_fields)[-1]
    scored = all(last in label_rules_of(program.predictors()[0]) for program in programs)
    return ("mean", "majority") if scored else ("majority",)


def together(programs: Sequence[dspy.Module], rule: Rule) -> dspy.Module:
    """A copy of the first one whose predictor has them all as members."""
    made = programs[0].deepcopy()
    (predictor,) = made.predictors()
    members = []
    for program in programs:
        (own,) = program.predictors()
        (state,) = predictor_states(state_of(program)).values()
        levers = {name: value for name, value in levers_of(own).items() if name != "ensemble"}
        members.append(Member(instructions=signature_of(own).instructions, demos=tuple(state["demos"]), **levers))
    pull(predictor, ensemble=Ensemble(rule=rule, members=tuple(members)).model_dump(mode="json"))
    return made
