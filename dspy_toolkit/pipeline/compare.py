"""A candidate against the champion: validation first, then, if that went well, the sealed test, once.

Covered: the order of the gate. A candidate whose prompt is the champion's, or that is worse on validation, is not shown the
sealed rows. For any other the ledger grants the opening first, then both programs run on the same sealed rows, beside
simple rules that the project names as references, and the paired interval decides. Every opening is in the ledger, with
its outcome.

Not covered: moving the champion (`registry`), and compiling, which is never given the sealed rows (`optimizers`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dspy_toolkit.datasets import Dataset, examples
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.evaluation import Report, evaluate
from dspy_toolkit.gate.decide import Comparison, Outcome, compare, judge
from dspy_toolkit.gate.ledger import Ledger
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.metrics import score
from dspy_toolkit.optimizers.sampling import sample_rows
from dspy_toolkit.optimizers.states import prompt_of
from dspy_toolkit.project import Project
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Frozen, Store, digest

if TYPE_CHECKING:
    import dspy
    import pandas as pd

log = logging.getLogger(__name__)

LEDGER = "sealed-openings.jsonl"

Progress = Callable[[int, int, str], None]
"""Told (rows done, all rows, what is going on)."""


class Challenge(Frozen):
    """How a candidate fared."""

    outcome: Outcome
    reason: str
    """One sentence for people."""
    candidate_val: Report | None
    champion_val: Report | None
    """On the validation rows that candidates were compared on; None when the candidate is the champion."""
    comparison: Comparison | None
    """On the sealed rows; None when they were not opened."""
    references: dict[str, float]
    """What simple rules score on the sealed rows; empty when they were not opened."""


def challenge(
    project: Project,
    candidate: dspy.Module,
    champion: dspy.Module,
    dataset: Dataset,
    settings: Settings,
    connection: Connection,
    store: Store,
    *,
    val_rows: int,
    tuned_on: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> Challenge:
    """Put `candidate` against `champion`.

    Args:
        champion: the live program, or the fresh one when nothing was promoted yet.
        dataset: `val` and `sealed` are read here; `train` for the references only.
        settings: seed, threads and false-promotion rate.
        val_rows: how many validation rows the candidate was chosen on; 0 for all.
        tuned_on: `_row` hashes that either program was tuned on; such a row is left out of the sealed test.

    Raises:
        ObjectMissing: a split is no longer in the store.
        LedgerError: the sealed rows cannot be opened any more.
        ToolkitError: the model failed; the opening is spent, and asking again is not charged again.
    """
    if prompt_of(candidate) == prompt_of(champion):
        outcome, reason = judge(None, changed=False, val_better=False)
        return Challenge(
            outcome=outcome, reason=reason, candidate_val=None, champion_val=None, comparison=None, references={}
        )

    def run(program: dspy.Module, frame: pd.DataFrame, split: str, who: str) -> Report:
        def tell(done: int, total: int) -> None:
            if progress is not None:
                progress(done, total, f"{who} on {split}")

        return evaluate(
            program,
            frame,
            project.dataset,
            project.metric,
            split=split,
            lm=connection.lm,
            adapter=connection.adapter,
            store=store,
            threads=settings.optimize.threads,
            progress=tell,
        )

    val = store.read_frame(dataset.val)
    val = sample_rows(val, val_rows or len(val), settings.optimize.seed)
    candidate_val, champion_val = run(candidate, val, "val", "candidate"), run(champion, val, "val", "champion")
    better = candidate_val.mean >= champion_val.mean
    comparison, references = None, {}
    if better:
        with connection.context():  # for the references, whose metric may ask the model
            comparison, references, record = _open_sealed(
                project, candidate, champion, dataset, settings, store, tuned_on, run
            )
        outcome, reason = judge(comparison, changed=True, val_better=True)
        record(outcome)
    else:
        outcome, reason = judge(None, changed=True, val_better=False)
    return Challenge(
        outcome=outcome,
        reason=reason,
        candidate_val=candidate_val,
        champion_val=champion_val,
        comparison=comparison,
        references=references,
    )


def _open_sealed(
    project: Project,
    candidate: dspy.Module,
    champion: dspy.Module,
    dataset: Dataset,
    settings: Settings,
    store: Store,
    tuned_on: frozenset[str],
    run: Callable[[dspy.Module, pd.DataFrame, str, str], Report],
) -> tuple[Comparison, dict[str, float], Callable[[str], None]]:
    sealed = store.read_frame(dataset.sealed)
    fresh = [index for index, row in enumerate(sealed["_row"]) if row not in tuned_on]
    if len(fresh) < len(sealed):
        left_out = len(sealed) - len(fresh)
        log.warning("%d sealed rows were used to tune one of the programs; they are left out.", left_out)
        sealed = sealed.iloc[fresh]
    if sealed.empty:
        raise DatasetError("No sealed row is left that neither program was tuned on. Add fresh labelled rows.")
    ledger = Ledger(settings.path(LEDGER))
    grant = ledger.grant(
        [str(row) for row in sealed["_row"]],
        project=project.name,
        candidate=digest(prompt_of(candidate)),
        champion=digest(prompt_of(champion)),
        rate=settings.optimize.false_promotion_rate,
    )
    ours, theirs = run(candidate, sealed, "sealed", "candidate"), run(champion, sealed, "sealed", "champion")
    comparison = compare(ours, theirs, store, alpha=grant.alpha, looks=grant.looks, alpha_left=grant.left)
    references = score_references(project, store.read_frame(dataset.train), sealed)
    return comparison, references, lambda outcome: ledger.record(grant, outcome, ours.rows)


def score_references(project: Project, train: pd.DataFrame, rows: pd.DataFrame) -> dict[str, float]:
    """What the project's simple rules, fitted to `train`, score on `rows`: name → mean in [0, 1]."""
    if not project.references:
        return {}
    fields: dict[str, Any] = fields_of(project.build())
    learn, cases = examples(train, project.dataset, fields), examples(rows, project.dataset, fields)
    means = {}
    for name, fit in project.references.items():
        answer = fit(learn)
        means[name] = sum(score(project.metric, case, answer(case)).value for case in cases) / len(cases)
    return means
