"""MIPROv2: instructions from a proposer that sees the data, the program and demonstrations; sets of demonstrations; and a
Bayesian search over their combinations.

The proposals are DSPy's own (`GroundedProposer`), and so is the search (Optuna's TPE over one instruction and one set a
predictor, as in `dspy.MIPROv2`). What differs is who scores: the pool, on as many rows as a combination deserves, instead of
every combination on a minibatch and some on all rows. More budget means more proposals of both kinds, a round at a time, until
nothing is left.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import dspy

from dspy_toolkit.optimizers.choice import Infeasible, run_cost
from dspy_toolkit.optimizers.generators.bootstrap import BOOTSTRAPPED, DEMOS, bootstrap
from dspy_toolkit.optimizers.generators.workshop import Workshop, with_parts
from dspy_toolkit.optimizers.pool.entry import Cost, Made
from dspy_toolkit.optimizers.profile import Profile
from dspy_toolkit.optimizers.sampling import balanced
from dspy_toolkit.optimizers.settings import PoolSettings
from dspy_toolkit.optimizers.states import signature_of

SETS = 2
"""Bootstrapped sets of demonstrations of one round."""
INSTRUCTIONS = 3
"""Instructions of one round, for each predictor."""
COMBINATIONS = 6
"""Candidates of one round: each new part is in some of them."""
SLICE = 12
"""Training rows that one set is bootstrapped from, and that the proposer looks at."""
DATA_CALLS = 6
"""Calls of the proposer on SLICE rows, at most: observations, and their summary."""
TRIES = 20
"""Combinations that were tried already, in a row, after which a round is over."""
SHOWN = 3
"""Demonstrations that the proposer is shown; DSPy's number."""


def cost(profile: Profile, settings: PoolSettings) -> Cost | Infeasible:
    """A round: its sets, its instructions, the first time what is said of the data and of the program."""
    if profile.train < 2:
        return Infeasible(reason=f"it needs at least 2 training rows, and there are {profile.train}")
    program = profile.predictors + 1 if _aware(profile) else 0
    round_ = SETS * min(SLICE, profile.train) * run_cost(profile) + INSTRUCTIONS * profile.predictors + program
    return Cost(round_ / COMBINATIONS, round_ + DATA_CALLS)


def candidates(shop: Workshop) -> Iterator[Made]:
    """Round after round: propose, then combine what has done well with what is new."""
    # Imported here so that its absence is found before anything is spent.
    import optuna
    from dspy.propose.grounded_proposer import GroundedProposer

    program, rng = shop.ground, random.Random(shop.seed)
    instructions = [[signature_of(predictor).instructions] for predictor in program.predictors()]
    demos: list[list[list[Any]]] = [[[]] for _ in program.predictors()]
    tried: dict[tuple[int, ...], Made] = {}
    for round_ in count():
        rows = balanced(shop.train, SLICE, seed=shop.seed * 1_000_003 + round_)
        sets = list(_demo_sets(shop, round_))
        for number, predictor_sets in enumerate(demos):
            predictor_sets += [made[number] for made in sets]
        shop.say("proposing instructions")
        proposed, _ = shop.attempt(_propose, GroundedProposer, shop, rows, demos, rng, metric=shop.float_metric)
        for number, texts in enumerate(proposed or []):
            instructions[number] += [text for text in texts if text not in instructions[number]]
        if not sets and not proposed:
            return
        for _ in range(COMBINATIONS):
            picked = _pick(optuna, shop, instructions, demos, tried)
            if picked is None:
                break
            half = len(instructions)
            made = with_parts(
                program,
                [texts[at] for texts, at in zip(instructions, picked[:half], strict=True)],
                [chosen[at] for chosen, at in zip(demos, picked[half:], strict=True)],
            )
            tried[picked] = Made(made, f"instruction {picked[0] + 1} with demonstrations {picked[half] + 1}")
            yield tried[picked]
        if shop.exhausted:
            return


def _aware(profile: Profile) -> bool:
    """Whether the proposer is shown the program's source and asked to describe it: long prompts, of use to a model that can
    write an instruction at all.
    """
    return profile.reflector_ok


def _demo_sets(shop: Workshop, round_: int) -> Iterator[list[list[Any]]]:
    """New sets: for each predictor its demonstrations. The first round has a labelled one too, where rows hold the answers."""
    if round_ == 0 and shop.profile.labelled and len(shop.problem.program.predictors()) == 1:
        yield [balanced(shop.train, DEMOS, seed=shop.seed)]
    for number in range(SETS):
        rows = balanced(shop.train, SLICE, seed=(shop.seed * 1_000 + round_) * 1_000 + number)
        shop.say(f"demonstrations from {len(rows)} rows")
        program = bootstrap(shop, shop.student(), rows, BOOTSTRAPPED, DEMOS)
        if program is None:
            return
        yield [list(predictor.demos) for predictor in program.predictors()]


def _propose(
    proposer: Any, shop: Workshop, rows: list[dspy.Example], demos: list[list[list[Any]]], rng: random.Random
) -> list[list[str]]:
    """INSTRUCTIONS texts for each predictor, as `dspy.MIPROv2` proposes them."""
    program = shop.student()
    made = proposer(
        program=program,
        trainset=rows,
        prompt_model=shop.reflection_lm,
        view_data_batch_size=10,
        program_aware=_aware(shop.profile),
        use_dataset_summary=True,
        use_task_demos=True,
        num_demos_in_context=SHOWN,
        use_tip=True,
        set_tip_randomly=True,
        use_instruct_history=False,
        set_history_randomly=False,
        rng=rng,
    )
    # The newest sets last; the proposer takes them in turn, and says no more of an empty one than of none.
    shown = {number: sets[-INSTRUCTIONS:] for number, sets in enumerate(demos)}
    found = made.propose_instructions_for_program(
        trainset=rows, program=program, demo_candidates=shown, trial_logs={}, N=INSTRUCTIONS
    )
    return [[str(text) for text in found[number] if text] for number in range(len(demos))]


def _pick(
    optuna: Any,
    shop: Workshop,
    instructions: list[list[str]],
    demos: list[list[list[Any]]],
    tried: dict[tuple[int, ...], Made],
) -> tuple[int, ...] | None:
    """The next combination, as TPE has it: the place of an instruction, then of a set, for each predictor. None where it only
    names combinations that were tried.

    The search is made anew each time: by now there are new parts, and the pool has scored old combinations on more rows.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    choices = {f"instruction {number}": len(texts) for number, texts in enumerate(instructions)}
    choices |= {f"demonstrations {number}": len(sets) for number, sets in enumerate(demos)}
    space = {name: optuna.distributions.CategoricalDistribution(range(size)) for name, size in choices.items()}
    sampler = optuna.samplers.TPESampler(seed=(shop.seed * 1_000_003 + len(tried)) % 2**32, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for picked, made in tried.items():
        if (mean := _mean(shop, made)) is not None:
            params = dict(zip(space, picked, strict=True))
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=mean))
    for _ in range(TRIES):
        trial = study.ask(space)
        picked = tuple(trial.params[name] for name in space)
        if picked not in tried:
            return picked
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return None


def _mean(shop: Workshop, made: Made) -> float | None:
    """A combination's mean by now; None where it is not scored, or was a candidate before."""
    entries = [] if shop.pool is None else shop.pool.entries
    return next((entry.mean() for entry in entries if entry.program is made.program), None)
