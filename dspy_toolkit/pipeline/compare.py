"""A candidate against the champion: validation first, then, if that went well, the sealed test, once.

Covered: the order of the gate. A candidate whose prompt is the champion's, or that is worse on validation, is not shown the
sealed rows. For any other the ledger grants the opening first, then both programs run on the same sealed rows, beside
simple rules that the project names for reference, and the paired interval decides. Every opening is in the ledger, with
its outcome. Rows that the champion, or what the search started from, was tuned on are no test.

Not covered: moving the champion (`release`), and compiling, which is never given the sealed rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy_toolkit.datasets import Dataset, examples
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.evaluation import Report, evaluate
from dspy_toolkit.gate import decide
from dspy_toolkit.gate.ledger import Ledger
from dspy_toolkit.metrics import score
from dspy_toolkit.optimizers.sampling import sample_rows
from dspy_toolkit.optimizers.states import fill, prompt_of
from dspy_toolkit.pipeline.context import Context, Progress
from dspy_toolkit.pipeline.source import trained_rows
from dspy_toolkit.pipeline.unchanged import check_unchanged
from dspy_toolkit.project import Project
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.registry.programs import live_program
from dspy_toolkit.run import CompareInput, Comparison, SealedTest
from dspy_toolkit.store import Store, digest

if TYPE_CHECKING:
    import dspy
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

LEDGER = "sealed-openings.jsonl"


def compare(context: Context, given: CompareInput, progress: Progress | None = None) -> Comparison:
    """Put the candidate against the champion; against the baseline while nothing is live.

    Raises:
        ProjectError: the program, its metric or its models have changed since the run began.
        ObjectMissing: a split is no longer in the store.
        LedgerError: the sealed rows cannot be opened any more.
        ToolkitError: the model failed; the opening is spent, and asking again is not charged again.
    """
    check_unchanged(context, given.program)
    project, store = context.project, context.store
    live = live_program(given.champion, project, context.settings)
    tuned_on = frozenset(live.manifest.trained_rows if live.manifest else ())
    match = Match(
        context,
        candidate=fill(project.build(), store.read_json(given.candidate)),
        champion=live.program,
        dataset=given.dataset,
        val_rows=given.val_rows,
        tuned_on=tuned_on | trained_rows(given.start, given.dataset.sealed, project.dataset, store),
        false_promotion_rate=given.false_promotion_rate,
        progress=progress,
    )
    return match.decide()


@dataclass(frozen=True)
class Match:
    """Two programs that are compared."""

    context: Context
    candidate: dspy.Module
    champion: dspy.Module
    dataset: Dataset
    val_rows: int = 0
    """Validation rows that the candidate was chosen by; 0 for all."""
    tuned_on: frozenset[str] = frozenset()
    """`_row` hashes that either program was tuned on; such a row is left out of the sealed test."""
    false_promotion_rate: float = 0.05
    progress: Progress | None = None

    def decide(self) -> Comparison:
        """The order of the gate; see the module."""
        if prompt_of(self.candidate) == prompt_of(self.champion):
            outcome, reason = decide.verdict(None, changed=False, val_better=False)
            return _comparison(outcome, reason)
        val = self.context.store.read_frame(self.dataset.val)
        val = sample_rows(val, self.val_rows or len(val), self.context.settings.optimize.seed)
        reports = self.score(self.candidate, val, "candidate on val"), self.score(self.champion, val, "champion on val")
        if reports[0].mean < reports[1].mean:
            outcome, reason = decide.verdict(None, changed=True, val_better=False)
            return _comparison(outcome, reason, reports)
        sealed = self.sealed_rows()
        with self.context.connection.context():  # for the reference rules, whose metric may ask the model
            test, record = self.open_sealed(sealed)
            train = self.context.store.read_frame(self.dataset.train)
            rules = score_reference_rules(self.context.project, train, sealed)
        outcome, reason = decide.verdict(test, changed=True, val_better=True)
        record(outcome)
        return _comparison(outcome, reason, reports, test, rules)

    def sealed_rows(self) -> pd.DataFrame:
        """The sealed rows that neither program was tuned on."""
        sealed = self.context.store.read_frame(self.dataset.sealed)
        fresh = [index for index, row in enumerate(sealed["_row"]) if row not in self.tuned_on]
        if left_out := len(sealed) - len(fresh):
            log.warning("%d sealed rows were used to tune one of the programs; they are left out.", left_out)
        if not fresh:
            raise DatasetError("No sealed row is left that neither program was tuned on. Add fresh labelled rows.")
        return sealed.iloc[fresh]

    def open_sealed(self, sealed: pd.DataFrame) -> tuple[SealedTest, Callable[[str], None]]:
        """Both programs on the sealed rows, once the ledger has granted it; and what writes the outcome into the ledger."""
        ledger = Ledger(self.context.settings.path(LEDGER))
        grant = ledger.grant(
            [str(row) for row in sealed["_row"]],
            project=self.context.project.name,
            candidate=digest(prompt_of(self.candidate)),
            champion=digest(prompt_of(self.champion)),
            rate=self.false_promotion_rate,
        )
        ours = self.score(self.candidate, sealed, "candidate on sealed")
        theirs = self.score(self.champion, sealed, "champion on sealed")
        test = compare_reports(
            ours, theirs, self.context.store, alpha=grant.alpha, looks=grant.looks, alpha_left=grant.left
        )
        return test, lambda outcome: ledger.record(grant, outcome, ours.rows)

    def score(self, program: dspy.Module, rows: pd.DataFrame, doing: str) -> Report:
        """Run a program on rows; `doing` ends in the name of their split."""

        def tell(done: int, total: int, _: str = "") -> None:
            if self.progress is not None:
                self.progress(done, total, doing)

        context = self.context
        return evaluate(
            program,
            rows,
            context.project.dataset,
            context.project.metric,
            split=doing.rpartition(" ")[2],
            lm=context.connection.lm,
            adapter=context.connection.adapter,
            store=context.store,
            threads=context.settings.optimize.threads,
            progress=tell,
        )


def compare_reports(
    candidate: Report, champion: Report, store: Store, *, alpha: float, looks: int, alpha_left: float
) -> SealedTest:
    """Compare two reports row by row; the other arguments are those of `gate.decide.compare`.

    Raises:
        DatasetError: the two reports do not cover the same rows.
        ObjectMissing: the rows of a report are no longer in the store.
    """
    ours, theirs, groups = _pairs(store.read_frame(candidate.rows), store.read_frame(champion.rows))
    ratio = candidate.usage.prompt_tokens / champion.usage.prompt_tokens if champion.usage.prompt_tokens else 1.0
    shown = decide.compare(ours, theirs, groups, alpha=alpha, looks=looks, alpha_left=alpha_left, tokens_ratio=ratio)
    return SealedTest(**shown.model_dump(), candidate=candidate, champion=champion)


def score_reference_rules(project: Project, train: pd.DataFrame, rows: pd.DataFrame) -> dict[str, float]:
    """What the project's simple rules, fitted to `train`, score on `rows`: name → mean in [0, 1]."""
    if not project.reference_rules:
        return {}
    fields: dict[str, Any] = fields_of(project.build())
    learn, cases = examples(train, project.dataset, fields), examples(rows, project.dataset, fields)
    means = {}
    for name, fit in project.reference_rules.items():
        answer = fit(learn)
        means[name] = sum(score(project.metric, case, answer(case)).value for case in cases) / len(cases)
    return means


def _comparison(
    outcome: decide.Outcome,
    reason: str,
    reports: tuple[Report, Report] | tuple[None, None] = (None, None),
    sealed: SealedTest | None = None,
    rules: dict[str, float] | None = None,
) -> Comparison:
    return Comparison(
        outcome=outcome,
        reason=reason,
        candidate_val=reports[0],
        champion_val=reports[1],
        sealed=sealed,
        reference_rules=rules or {},
    )


def _pairs(
    candidate: pd.DataFrame, champion: pd.DataFrame
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.object_]]:
    """The candidate's scores, the champion's and the groups, all in the order of the row hashes."""
    ours, theirs = (frame.set_index("_row").sort_index() for frame in (candidate, champion))
    if not (ours.index.is_unique and ours.index.equals(theirs.index)):
        only = len(ours.index.difference(theirs.index)), len(theirs.index.difference(ours.index))
        raise DatasetError(
            f"The reports to compare do not cover the same rows: {len(ours)} of the candidate ({only[0]} only there) and "
            f"{len(theirs)} of the champion ({only[1]} only there). Evaluate both on the same split."
        )
    return ours["value"].to_numpy(float), theirs["value"].to_numpy(float), ours["_group"].to_numpy(object)
