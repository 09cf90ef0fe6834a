"""The scores of several programs on the same rows, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dspy_toolkit.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dspy_toolkit.evaluation import Report
    from dspy_toolkit.store import Store


class Pairs(NamedTuple):
    """Scores row by row, in the order of the row hashes."""

    candidate: NDArray[np.float64]
    others: tuple[NDArray[np.float64], ...]
    groups: list[str]


def paired(store: Store, candidate: Report, *others: Report) -> Pairs:
    """The scores of the candidate and of what it is compared with.

    Raises:
        DatasetError: two of the reports do not cover the same rows.
        ObjectMissing: the rows of a report are no longer in the store.
    """
    ours, *rest = (store.read_frame(report.rows).set_index("_row").sort_index() for report in (candidate, *others))
    for theirs in rest:
        if not (ours.index.is_unique and ours.index.equals(theirs.index)):
            only = len(ours.index.difference(theirs.index)), len(theirs.index.difference(ours.index))
            raise DatasetError(
                f"The reports to compare do not cover the same rows: {len(ours)} of the candidate ({only[0]} only there) "
                f"and {len(theirs)} of the champion ({only[1]} only there). Evaluate both on the same split."
            )
    return Pairs(
        ours["value"].to_numpy(float),
        tuple(theirs["value"].to_numpy(float) for theirs in rest),
        [str(group) for group in ours["_group"]],
    )


def tokens_ratio(candidate: Report, champion: Report) -> float:
    """The candidate's prompt tokens over the champion's; 1 where the champion's were not counted."""
    theirs = champion.usage.prompt_tokens
    return candidate.usage.prompt_tokens / theirs if theirs else 1.0
