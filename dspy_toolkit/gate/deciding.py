"""The whole gate in one call: scores in, a verdict out, the opening in the ledger.

For scores of any program, whatever made or ran it: nothing but numpy, scipy and pydantic is imported. The pipeline calls the
same function.

Not covered: reading scores from files (`score_files`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.gate.evidence import CHEAPER, compare, row_means
from dspy_toolkit.gate.ledger import Grant, Ledger, first_alpha
from dspy_toolkit.gate.verdict import Verdict, weigh
from dspy_toolkit.store import Ref, digest

if TYPE_CHECKING:
    from dspy_toolkit.gate.evidence import Scores


def decide(
    old_scores: Scores,
    new_scores: Scores,
    *,
    groups: Sequence[Any] | None = None,
    rows: Sequence[Any] | None = None,
    old_tokens: float | Iterable[float] | None = None,
    new_tokens: float | Iterable[float] | None = None,
    anchor_scores: Scores | None = None,
    ledger: Ledger | Path | str | None = None,
    rate: float = 0.05,
    name: str = "gate",
    grant: Grant | None = None,
    kept: Ref | None = None,
) -> Verdict:
    """Say whether the new program is better than the old one on rows that neither was tuned on.

    Args:
        old_scores: the live program's scores in [0, 1], one for each row; or for each row a list of repeats, whose mean
            counts.
        new_scores: the candidate's, of the same rows in the same order.
        groups: the group of each row, where rows belong together (near-duplicates, turns of one conversation); without
            them each row is its own.
        rows: the name of each row, by which the ledger knows it again: an id or a text that stays when the row is edited.
            The groups serve where rows are not named.
        old_tokens: prompt tokens of the live program, all together or one number a row.
        new_tokens: the candidate's.
        anchor_scores: of the last program that was promoted for quality, where that is not the live one.
        ledger: the file of openings, or its path: each call spends a part of `rate`, and the same scores again spend nothing.
            Without one, this counts as the first opening, and nobody counts how often you look.
        rate: the chance of ever promoting a candidate that is not better, over the life of these rows, in (0, 0.5).
        name: what the ledger calls the test.
        grant: an opening that `ledger` has granted already.
        kept: where the candidate's results are kept, for the ledger.

    Returns:
        The outcome with its reason and the evidence. `unchanged`, and nothing spent, where every row scores the same.

    Raises:
        DatasetError: the scores are not of the same rows, are empty or not in [0, 1], or rows have no names to keep.
        LedgerError: nothing of the rate is left, or the ledger cannot be read or written.
    """
    old, new = row_means(old_scores, "The old"), row_means(new_scores, "The new")
    anchor = None if anchor_scores is None else row_means(anchor_scores, "The anchor's")
    grouped = list(range(len(old))) if groups is None else [str(group) for group in groups]
    lengths = {"old": len(old), "new": len(new), "groups": len(grouped)}
    lengths |= {} if rows is None else {"rows": len(rows)}
    lengths |= {} if anchor is None else {"anchor": len(anchor)}
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"Not one of each for every row: {lengths}. Give the scores of the same rows, in one order.")
    ratio = token_ratio(old_tokens, new_tokens)
    if grant is None and (old == new).all() and ratio > CHEAPER:
        return Verdict(outcome="unchanged", reason="Every row scores as before; nothing of the rate was spent.")
    book = Ledger(Path(ledger)) if isinstance(ledger, str | Path) else ledger
    if grant is None and book is not None:
        if rows is None and groups is None:
            raise DatasetError("A ledger knows rows by their names. Pass `rows` (ids or texts), or `groups`.")
        grant = book.grant(
            _names(rows, groups),
            project=name,
            candidate=digest(new.tolist(), ratio),
            champion=digest(old.tolist(), [] if anchor is None else anchor.tolist()),
            rate=rate,
            same_scores=True,
        )
    alpha, looks, left = (grant.alpha, grant.looks, grant.left) if grant else first_alpha(rate)
    evidence = compare(new, old, grouped, alpha=alpha, looks=looks, alpha_left=left, tokens_ratio=ratio, anchor=anchor)
    verdict = weigh(evidence)
    if book is not None and grant is not None:
        book.record(grant, verdict.outcome, kept, scores_sha256(old_scores, new_scores, anchor_scores, ratio))
    return verdict


def scores_sha256(old_scores: Any, new_scores: Any, anchor_scores: Any, tokens_ratio: float) -> str:
    """What a verdict follows from, as the ledger remembers it; scores as `decide` takes them."""
    scores = [
        [] if each is None else row_means(each, "The").tolist() for each in (old_scores, new_scores, anchor_scores)
    ]
    return digest(*scores, tokens_ratio)


def _names(*columns: Sequence[Any] | None) -> set[str]:
    """Short hashes of the names: a ledger may lie where the rows' texts may not."""
    return {digest(str(value))[:16] for column in columns if column is not None for value in column}


def token_ratio(old: float | Iterable[float] | None, new: float | Iterable[float] | None) -> float:
    """The new tokens over the old; 1 where either was not counted."""
    counts: list[float] = [float(sum(each) if isinstance(each, Iterable) else each or 0) for each in (old, new)]
    return counts[1] / counts[0] if min(counts) > 0 else 1.0
