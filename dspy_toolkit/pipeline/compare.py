"""A candidate against the champion: validation first, then, if that speaks for it, the sealed test, once.

Covered: the order of the gate. A candidate whose prompt is the champion's, or that a paired test on validation does not speak
for, is not shown the sealed rows. For any other the ledger grants the opening first, then the programs run on the same
sealed rows, beside simple rules that the project names for reference, and the gate decides. Where the champion was promoted
for its fewer tokens, the last one that was promoted for quality (the anchor) runs too. Every opening is in the ledger, with
its outcome. Rows that the champion, or what the search started from, was tuned on are no test; validation rows that no
search has read are as good as sealed ones, and join it.

Not covered: the verdict itself (`dspy_toolkit.gate`), moving the champion (`release`), and compiling, which is never given
the sealed rows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from dspy_toolkit.datasets import Dataset, examples
from dspy_toolkit.errors import DatasetError, RegistryError
from dspy_toolkit.evaluation import Report, evaluate
from dspy_toolkit.gate import Verdict, decide, worth_opening
from dspy_toolkit.gate.deciding import scores_sha256, token_ratio
from dspy_toolkit.gate.ledger import Grant, Ledger, Opening
from dspy_toolkit.gate.verdict import not_opened, unchanged
from dspy_toolkit.metrics import score
from dspy_toolkit.optimizers.sampling import sample_rows
from dspy_toolkit.optimizers.states import fill, prompt_of
from dspy_toolkit.pipeline.context import Context, Progress
from dspy_toolkit.pipeline.pairing import paired, tokens_ratio
from dspy_toolkit.pipeline.prepare import placements_path
from dspy_toolkit.pipeline.row_names import row_names
from dspy_toolkit.pipeline.source import trained_rows
from dspy_toolkit.pipeline.tuned_on import rows_read
from dspy_toolkit.pipeline.unchanged import check_unchanged
from dspy_toolkit.project import Project
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.registry.programs import LoadedProgram, live_program, load_program
from dspy_toolkit.run import CompareInput, Comparison, SealedTest
from dspy_toolkit.store import digest

if TYPE_CHECKING:
    import dspy
    import pandas as pd

log = logging.getLogger(__name__)

LEDGER = "sealed-openings.jsonl"
MOST_ROWS = 2_000
"""Of one sealed test. They show a gain of 3 points four times in five; all programs are run on each."""


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
    tuned_on = _trained(live)
    measured_from = live.manifest.anchor if live.manifest else None
    anchor, cheaper_may = None, True
    if measured_from is not None:
        try:
            earlier = load_program(context.settings, f"{project.name}@{measured_from}", project.location)
        except RegistryError as error:
            # Better one way to be promoted less than no run any more.
            log.warning(
                "The last champion promoted for quality is gone; cheaper candidates are not promoted: %s", error
            )
            cheaper_may = False
        else:
            anchor, tuned_on = earlier.program, tuned_on | _trained(earlier)
    match = Match(
        context,
        candidate=fill(project.build(), store.read_json(given.candidate)),
        champion=live.program,
        dataset=given.dataset,
        val_rows=given.val_rows,
        tuned_on=tuned_on | trained_rows(given.start, given.night, given.dataset.sealed, project.dataset, store),
        false_promotion_rate=given.false_promotion_rate,
        progress=progress,
        anchor=anchor,
        cheaper_may=cheaper_may,
    )
    found = match.decide()
    # What a cheaper candidate gives up is counted from where the champion's own loss is.
    return found.model_copy(update={"anchor": given.champion.version if measured_from is None else measured_from})


def _trained(loaded: LoadedProgram) -> frozenset[str]:
    return frozenset(loaded.manifest.trained_rows if loaded.manifest else ())


class Question(TypedDict):
    """What a sealed test is asked, as the ledger knows it."""

    candidate: str
    champion: str
    rate: float


class Opened(NamedTuple):
    """An opening of the sealed rows."""

    ledger: Ledger
    names: frozenset[str]
    """Of the rows."""
    question: Question
    grant: Grant
    answered: Opening | None
    """The same question's earlier answer, whose grant this is."""


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
    anchor: dspy.Module | None = None
    """The last champion that was promoted for quality; None where that is the champion."""
    cheaper_may: bool = True
    """Whether fewer tokens can be a reason for a promotion."""

    def decide(self) -> Comparison:
        """The order of the gate; see the module."""
        if prompt_of(self.candidate) == prompt_of(self.champion):
            return _comparison(unchanged())
        val = self.context.store.read_frame(self.dataset.val)
        val = sample_rows(val, self.val_rows or len(val))
        reports = self.score(self.candidate, val, "candidate on val"), self.score(self.champion, val, "champion on val")
        scores, ratio = paired(self.context.store, *reports), tokens_ratio(*reports) if self.cheaper_may else 1.0
        worth = worth_opening(scores.candidate, scores.others[0], scores.groups, tokens_ratio=ratio)
        log.info("%s", worth.reason)
        if not worth.worth:
            return _comparison(not_opened(worth.reason), reports)
        sealed = self.sealed_rows()
        with self.context.connection.context():  # for the reference rules, whose metric may ask the model
            opening = self.open_sealed(sealed)
            ran = [
                self.score(program, sealed, f"{who} on sealed")
                for who, program in (
                    ("candidate", self.candidate),
                    ("champion", self.champion),
                    ("anchor", self.anchor),
                )
                if program is not None
            ]
            train = self.context.store.read_frame(self.dataset.train)
            rules = score_reference_rules(self.context.project, train, sealed)
        verdict = self.weigh(opening, *ran)
        return _comparison(verdict, reports, ran, rules)

    def sealed_rows(self) -> pd.DataFrame:
        """The sealed rows that neither program was tuned on, and the validation rows that no search has read; of very many, a
        sample.
        """
        import pandas as pd

        sealed, val = (self.context.store.read_frame(split) for split in (self.dataset.sealed, self.dataset.val))
        fresh = sealed[[str(row) not in self.tuned_on for row in sealed["_row"]]]
        if left_out := len(sealed) - len(fresh):
            log.warning("%d sealed rows were used to tune one of the programs; they are left out.", left_out)
        if fresh.empty:
            raise DatasetError("No sealed row is left that neither program was tuned on. Add fresh labelled rows.")
        unread = sample_rows(val, len(val)).iloc[rows_read(self.val_rows) if self.val_rows else len(val) :]
        unread = unread[[str(row) not in self.tuned_on for row in unread["_row"]]]
        rows = pd.concat([fresh, unread], ignore_index=True) if len(unread) else fresh
        rows = sample_rows(rows, MOST_ROWS)
        rows.attrs = sealed.attrs
        return rows

    def open_sealed(self, sealed: pd.DataFrame, question: Question | None = None) -> Opened:
        """The opening that the ledger grants; for the two programs' prompts, unless another question is asked."""
        context, name = self.context, self.context.project.name
        ledger = Ledger(context.settings.path(LEDGER))
        # Rows in memory belong to no file whose rows could be remembered.
        remembered = placements_path(context.settings, name) if context.records is None else None
        names = frozenset(row_names(sealed, context.project.dataset, remembered))
        question = question or {
            "candidate": digest(prompt_of(self.candidate)),
            "champion": digest(prompt_of(self.champion)),
            "rate": self.false_promotion_rate,
        }
        # A run that was killed after its answer was written asks the same question again.
        answered = ledger.answered(names, **question)
        grant = answered.grant if answered else ledger.grant(names, project=name, **question)
        return Opened(ledger, names, question, grant, answered)

    def weigh(self, opening: Opened, candidate: Report, champion: Report, anchor: Report | None = None) -> Verdict:
        """The verdict on what was granted, which the ledger then holds."""
        others = (champion,) if anchor is None else (champion, anchor)
        scores = paired(self.context.store, candidate, *others)
        given: dict[str, Any] = {
            "old_scores": scores.others[0],
            "new_scores": scores.candidate,
            "anchor_scores": scores.others[1] if anchor is not None else None,
        }
        old_tokens = champion.usage.prompt_tokens if self.cheaper_may else None
        ratio = token_ratio(old_tokens, candidate.usage.prompt_tokens)
        grant = opening.grant
        if opening.answered and opening.answered.scores != scores_sha256(**given, tokens_ratio=ratio):
            # Something else came out than the time before: another look.
            grant = opening.ledger.grant(opening.names, project=self.context.project.name, **opening.question)
        return decide(
            **given,
            groups=scores.groups,
            old_tokens=old_tokens,
            new_tokens=candidate.usage.prompt_tokens,
            ledger=opening.ledger,
            grant=grant,
            kept=candidate.rows,
        )

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
            repeats=context.settings.optimize.repeats,
            progress=tell,
        )


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
    verdict: Verdict,
    val: tuple[Report, Report] | tuple[None, None] = (None, None),
    sealed: list[Report] | None = None,
    rules: dict[str, float] | None = None,
) -> Comparison:
    test = None
    if sealed is not None and verdict.evidence is not None:
        test = SealedTest(**verdict.evidence.model_dump(), candidate=sealed[0], champion=sealed[1])
    return Comparison(
        outcome=verdict.outcome,
        reason=verdict.reason,
        promoted_for=verdict.promoted_for,
        candidate_val=val[0],
        champion_val=val[1],
        sealed=test,
        reference_rules=rules or {},
    )
