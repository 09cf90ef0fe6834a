"""Answers that a program had better not give: those whose confidence is below `Project.abstain_below`.

Such a prediction keeps its answer and its confidence, and is marked: `"abstained": true`. What to do with it, say to ask a person,
is for whoever reads it. Only predictions that carry a confidence can be marked: those of a choice whose labels are scored.

It changes no score. The metric, the search and the gate judge the answer that was given, so that two programs are always compared on
the same rows, and none gains by answering less. The report says beside that how many rows it would answer, and its score on these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARK = "abstained"
"""The entry of a prediction that says it."""


def confidence_of(prediction: Any) -> float | None:
    """What a prediction says of itself; None where it says nothing, or no number in [0, 1]."""
    said = prediction.get("confidence") if isinstance(prediction, Mapping) else None
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= 1:
        return None
    return float(said)


def marked(prediction: Mapping[str, Any], below: float | None) -> dict[str, Any]:
    """A prediction, with whether it abstains where that can be said.

    Args:
        prediction: its fields; an output of its own that is called `abstained` is left as it is.
        below: the project's `abstain_below`.
    """
    made, sure = dict(prediction), confidence_of(prediction)
    if below is not None and sure is not None and MARK not in made:
        made[MARK] = sure < below
    return made
