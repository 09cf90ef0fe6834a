"""Several answers become one.

    majority            the answer that most members gave; of equal counts the one whose first member comes first
    weighted            the same with the members' weights
    first_valid         that of the first member, in their order, that gave one with all outputs
    mean_probabilities  the label whose mean probability, by weight, is highest; for one output that is a choice with fitted labels
    judge               the one that a language model takes for the best

Two answers are the same when their outputs are, as JSON. A member that failed has no say; where all failed, so does the ensemble.
Covered: the rules, on answers; counting is `dspy_toolkit.lm.votes`. Not covered: asking the members (`service`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.lm.votes import heaviest, mean_probabilities
from dspy_toolkit.project.abstention import MARK
from dspy_toolkit.sections import EnsembleRule

Prediction = Mapping[str, Any]
Judge = Callable[[Sequence[Prediction]], Awaitable[int]]
"""The place of the best of some answers."""


@dataclass(frozen=True)
class Vote:
    """A member's answer."""

    member: str
    prediction: Prediction
    weight: float = 1.0


async def combine(rule: EnsembleRule, votes: Sequence[Vote], outputs: Sequence[str], judge: Judge) -> dict[str, Any]:
    """One prediction of several.

    Args:
        votes: of the members that answered, in the members' order; at least one.
        outputs: the names of what is voted on.
        judge: asked by the rule of that name, where two answers differ.

    Raises:
        ProgramError: the rule cannot be used on these answers.
    """
    if rule == "mean_probabilities":
        return _mean(votes, outputs)
    if rule == "first_valid":
        valid = (vote for vote in votes if all(vote.prediction.get(name) is not None for name in outputs))
        return _unmarked(next(valid, votes[0]).prediction)
    keys = [_key(vote.prediction, outputs) for vote in votes]
    if rule == "judge" and len(set(keys)) > 1:
        firsts = [votes[keys.index(key)].prediction for key in dict.fromkeys(keys)]
        return _unmarked(firsts[await judge(firsts)])
    said = _unmarked(votes[heaviest(keys, [vote.weight for vote in votes])].prediction)
    if "confidence" in said or "probabilities" in said:  # one member's, which is not the ensemble's
        said.pop("confidence", None)
        said.pop("probabilities", None)
    return said


def _unmarked(prediction: Prediction) -> dict[str, Any]:
    """A member's prediction without whether that member abstained: the ensemble's project says whether it does."""
    return {name: value for name, value in prediction.items() if name != MARK}


def agreement(votes: Sequence[Vote], prediction: Prediction, outputs: Sequence[str]) -> float:
    """The share of the members' weight that is for a prediction."""
    chosen = _key(prediction, outputs)
    total = sum(vote.weight for vote in votes)
    return sum(vote.weight for vote in votes if _key(vote.prediction, outputs) == chosen) / total


def _key(prediction: Prediction, outputs: Sequence[str]) -> str:
    return json.dumps({name: prediction.get(name) for name in outputs}, sort_keys=True, ensure_ascii=False)


def _mean(votes: Sequence[Vote], outputs: Sequence[str]) -> dict[str, Any]:
    scored = [vote for vote in votes if isinstance(vote.prediction.get("probabilities"), Mapping)]
    if not scored:
        raise ProgramError(
            "No member of the ensemble has fitted labels, and so no probabilities to average. Take the rule majority, or "
            "optimize a member with `--optimizer labels`."
        )
    best, mean = mean_probabilities(
        [vote.prediction["probabilities"] for vote in scored], [vote.weight for vote in scored]
    )
    # What a label stands for is known from a member that took it, else from the label's own text.
    name = outputs[-1]
    taken = {
        max(found, key=lambda label: found[label]): vote.prediction.get(name)
        for vote in scored
        if (found := vote.prediction["probabilities"])
    }
    return {name: taken.get(best, best), "probabilities": mean, "confidence": mean[best]}
