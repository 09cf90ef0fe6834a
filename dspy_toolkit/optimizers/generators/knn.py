"""Demonstrations chosen for each input: the training rows most like it (`dspy_toolkit.lm.neighbors`).

The candidates are the baseline in its best format, and whatever leads after it, each with a few numbers of neighbours and both ways
to measure alikeness; the neighbours take the place of its demonstrations. The training rows go into the store once; a candidate's state
names them. Validation and sealed rows are never among them.

For programs of one predictor: a row holds no answer for the steps in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dspy_toolkit.lm.levers import pull
from dspy_toolkit.lm.litellm.provider import context_of, count_prompt
from dspy_toolkit.lm.neighbors import NeighborRow, NeighborRows, Neighbors, Unit
from dspy_toolkit.optimizers.choice import Infeasible
from dspy_toolkit.optimizers.generators.workshop import Workshop
from dspy_toolkit.optimizers.pool.entry import WAIT, Cost, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import sample_rows
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import prompt_of, signature_of, state_of
from dspy_toolkit.project.states import predictor_states
from dspy_toolkit.store import Store, digest

if TYPE_CHECKING:
    import dspy

TRIED: tuple[tuple[int, Unit], ...] = ((8, "characters"), (4, "characters"), (16, "characters"), (8, "words"))
"""(how many, by what), in the order in which they are tried."""
LEAST_ROWS = 4
MOST_ROWS = 5_000
"""Training rows that are kept with a program: a version holds a copy of them."""
TOKENS = 1_500
"""Of all demonstrations in a prompt, at most."""
SHARE = 1 / 2
"""Of the model's context, the same: the input and the reply need the rest."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """Nothing beyond scoring."""
    if profile.predictors > 1:
        return Infeasible(
            reason=f"the rows hold no answers for the steps in between of a program with {profile.predictors} predictors"
        )
    if profile.train < LEAST_ROWS:
        return Infeasible(reason=f"{profile.train} training rows are too few to choose among; {LEAST_ROWS} are needed")
    return Cost(0, 0)


def candidates(shop: Workshop) -> Iterator[Made | None]:
    """Each setting, with the baseline and with each program that leads later."""
    rows = stored(shop)
    ref = shop.problem.store.save_json(rows)
    if (objects := getattr(shop.adapter, "objects", "")) and objects != shop.problem.store.root:
        Store(objects).save_json(rows)  # a connection of another home looks there
    context = context_of(shop.lm.model)
    tokens = TOKENS if context is None else min(TOKENS, int(context * SHARE))
    given: set[str] = set()
    program, whose = shop.ground, "the program"
    while True:
        for count, unit in TRIED:
            count = min(count, len(rows.rows))
            made = with_neighbors(
                program, Neighbors(rows=ref.sha256, of=len(rows.rows), count=count, tokens=tokens, unit=unit)
            )
            if (prompt := digest(prompt_of(made))) not in given:
                given.add(prompt)
                yield Made(made, f"{whose} with the {count} nearest rows by {unit}")
        yield WAIT
        if shop.pool is not None:
            program, whose = shop.leader, shop.pool.best.label.partition(" with the ")[0]


def with_neighbors(program: dspy.Module, neighbors: Neighbors) -> dspy.Module:
    """A copy of a program of one predictor whose demonstrations are chosen for each input."""
    made = program.deepcopy()
    (predictor,) = made.predictors()
    predictor.demos = []
    pull(predictor, neighbors=neighbors.model_dump(mode="json"))
    return made


def stored(shop: Workshop) -> NeighborRows:
    """The training rows as demonstrations, each with the tokens that it takes."""
    problem = shop.problem
    frame = sample_rows(problem.train, MOST_ROWS)
    # Through the state of a program, so that values are as those of saved demonstrations.
    holder = problem.program.deepcopy()
    (predictor,) = holder.predictors()
    predictor.demos = problem.cases(frame)
    (state,) = predictor_states(state_of(holder)).values()
    fields = signature_of(predictor)
    known = {*fields.input_fields, *fields.output_fields}
    rows = []
    for demo, group in zip(state["demos"], frame["_group"], strict=True):
        values = {name: value for name, value in demo.items() if name in known}
        tokens = _tokens(shop.lm.model, values, set(fields.input_fields))
        rows.append(NeighborRow(values=values, group=str(group), tokens=tokens))
    return NeighborRows(rows=tuple(rows))


def _tokens(model: str, values: dict[str, Any], inputs: set[str]) -> int:
    """Tokens of two turns with a row's values: how much longer a conversation is with them twice than once."""
    sides = ([v for k, v in values.items() if (k in inputs) == asked] for asked in (True, False))
    turns = [
        {"role": role, "content": "\n".join(map(str, side))}
        for role, side in zip(("user", "assistant"), sides, strict=True)
    ]
    return count_prompt(model, turns * 2) - count_prompt(model, turns)
