"""Several answers, one taken: counting votes and averaging probabilities, with or without weights.

Used for the prompts of one predictor (`ensembles`) and for whole programs behind one name (`dspy_toolkit.serving.ensembles`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def heaviest(answers: Sequence[str], weights: Sequence[float] | None = None) -> int:
    """The place of the first who gave the answer with most weight behind it; of equals the earlier.

    Args:
        answers: at least one; the same answer is the same text.
        weights: one an answer, above 0; None for equal ones.
    """
    total: dict[str, float] = {}
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        total[answer] = total.get(answer, 0.0) + weight
    return max(range(len(answers)), key=lambda at: total[answers[at]])  # max keeps the first of equals


def mean_probabilities(
    chances: Sequence[Mapping[str, float]], weights: Sequence[float] | None = None
) -> tuple[str, dict[str, float]]:
    """The likeliest label, and each label's mean probability; a label that one does not know has none there.

    Args:
        chances: label → probability, at least one; the labels of the first are those that count.
        weights: one a mapping, above 0; None for equal ones.
    """
    weights = weights or [1.0] * len(chances)
    mean = {
        label: sum(weight * each.get(label, 0.0) for weight, each in zip(weights, chances, strict=True)) / sum(weights)
        for label in chances[0]
    }
    return max(mean, key=lambda label: mean[label]), mean
