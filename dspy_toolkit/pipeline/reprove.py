"""Asking the gate again: does a saved program still hold, when the model, DSPy or the rows are others than when it was promoted?

    on another model     the champion on that model against the champion on today's
    as things are today  the champion against the project's own program, which a new DSPy or new rows may have made as good
    a version            a version that is not live against the champion, or against the project's own program where nothing is
                         live; its verdict is kept with it, and `programs promote` obeys it

All of it is on the sealed rows, and every opening is in the ledger. Each answer is a run of MLflow, and no decision: nothing is
promoted here. Beside it stands what the program scored when it was promoted: one that still beats what it is compared with may
have lost much since.

Not covered: searching for a better program where one fell (the flow `optimize_program`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from pydantic import ValidationError

from dspy_toolkit.datasets import read_file
from dspy_toolkit.errors import RegistryError
from dspy_toolkit.evaluation import Report
from dspy_toolkit.gate.evidence import Evidence
from dspy_toolkit.lm.connection import Connection, connect
from dspy_toolkit.optimizers.states import prompt_of
from dspy_toolkit.pipeline.compare import Match
from dspy_toolkit.pipeline.context import Context, Progress
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.project import data_part
from dspy_toolkit.registry import champion, find_version
from dspy_toolkit.registry.manifest import KeptVerdict
from dspy_toolkit.registry.programs import LoadedProgram, load_program
from dspy_toolkit.registry.references import is_version, project_name
from dspy_toolkit.registry.verdicts import keep_verdict
from dspy_toolkit.registry.versions import CHAMPION
from dspy_toolkit.settings import LMSettings, Settings
from dspy_toolkit.store import Frozen, digest
from dspy_toolkit.tracking.runs import record_run

Outcome = Literal["holds", "fell", "undecided", "passed", "refused"]
"""Of a champion: `holds`, `fell`, `undecided`; of a version: `passed`, `refused`."""

TOLERANCE = 0.05
"""The loss, as a share, that a champion on another model may show and still holds."""


class SealedScore(Frozen):
    """What a program scored on sealed rows."""

    mean: float
    low: float
    """Lower end of the mean's 95 % interval."""
    high: float
    n: int
    """Rows."""


class Reproof(Frozen):
    """What the gate said."""

    project: str
    version: int
    location: str
    """Where the project is."""
    question: str
    """What was compared, for people."""
    outcome: Outcome
    reason: str
    evidence: Evidence | None
    """None where the sealed rows were not opened."""
    score: SealedScore | None = None
    """Of the version, now; on the other model where it is moved to one. None where the sealed rows were not opened."""
    score_then: SealedScore | None = None
    """Of the version when it was made, from its manifest; None where it was not tested then."""
    note: str = ""
    """Where it scores less now than the interval of then."""


def reprove(
    settings: Settings,
    reference: str,
    *,
    model: str = "",
    tolerance: float = TOLERANCE,
    connecting: Callable[[Settings], Connection] = connect,
    progress: Progress | None = None,
) -> Reproof:
    """Ask the gate about a champion, or about a version that is not live.

    Args:
        settings: the home, and today's model.
        reference: a project (its champion), or `project@3`.
        model: another model to run a champion on; empty: as things are today.
        tolerance: with `model`, the loss as a share in [0, 1) that is put up with.
        connecting: gives the language models of settings.
        progress: told (done, all, what is going on).

    Raises:
        RegistryError: nothing of the project is promoted, or the version cannot be used.
        LedgerError: the sealed rows cannot be opened any more.
        ToolkitError: the rows, the project or a model cannot be used.
    """
    name = reference if is_version(reference) else f"{project_name(reference)}@{CHAMPION}"
    version = find_version(settings, name)
    loaded = load_program(
        settings, f"{version.project}@{version.version}", "" if is_version(reference) else _place(reference)
    )
    context = Context(loaded.project, settings.for_project(version.project), connecting)
    asked = _Asked(context, loaded, version.version, progress)
    if CHAMPION not in version.aliases:
        if model:
            raise RegistryError(
                f"{name} is not the champion. Without --model it is compared with the champion, on today's model."
            )
        made = asked.version_against_champion()
    else:
        made = asked.on_another_model(model, tolerance) if model else asked.champion_against_own()
    _record(settings, made, model)
    return made


def with_model(settings: Settings, model: str) -> Settings:
    """These settings with another task model. A key and an address stay with the provider that they were written for."""
    given: dict[str, Any] = {name: getattr(settings.lm, name) for name in settings.lm.model_fields_set} | {
        "model": model
    }
    if model.partition("/")[0] != settings.lm.model.partition("/")[0]:
        given = {name: value for name, value in given.items() if name not in ("api_key", "api_base")}
    return settings.model_copy(update={"lm": LMSettings.model_validate(given)})


class _Asked:
    """One question to the gate."""

    def __init__(self, context: Context, loaded: LoadedProgram, version: int, progress: Progress | None) -> None:
        self.context, self.loaded, self.version = context, loaded, version
        project, settings = context.project, context.settings
        data = data_part(project, settings, read_file(project.data_path))
        self.match = Match(
            context,
            candidate=loaded.program,
            champion=project.build(),
            dataset=prepare(context, data),
            tuned_on=_trained(loaded),
            false_promotion_rate=settings.optimize.false_promotion_rate,
            progress=progress,
        )

    def champion_against_own(self) -> Reproof:
        match, question = self.match, "the champion against the project's own program"
        if prompt_of(match.candidate) == prompt_of(match.champion):
            return self._answer(question, "undecided", "It is the project's own program.", None, None)
        # Validation rows do not go first, as for a candidate: where they spoke against the champion it would never fall.
        sealed = match.sealed_rows()
        opening = match.open_sealed(sealed)
        reports = (
            match.score(match.candidate, sealed, "champion on sealed"),
            match.score(match.champion, sealed, "the project's own program on sealed"),
        )
        verdict = match.weigh(opening, *reports)
        seen = verdict.evidence
        assert seen is not None  # the rows were opened
        outcome: Outcome = "holds" if verdict.outcome == "promoted" else "fell" if seen.high < 0 else "undecided"
        words = {
            "holds": "It is as good to a point, from fewer prompt tokens"
            if verdict.promoted_for == "tokens"
            else "It is better",
            "fell": "It is worse",
            "undecided": "Neither is shown to be better",
        }
        return self._answer(question, outcome, f"{words[outcome]}: {_points(seen)}.", seen, reports[0])

    def version_against_champion(self) -> Reproof:
        settings, name = self.context.settings, self.context.project.name
        live, match = champion(settings, name), self.match
        against = "the project's own program, since nothing is live"
        if live.version is not None:
            against = f"the champion, version {live.version}"
            match = self._with(match, live.version)
        found = match.decide()
        verdict = KeptVerdict(
            outcome=found.outcome, reason=found.reason, champion=live.version, champion_sha256=live.sha256 or ""
        )
        keep_verdict(settings, name, self.version, verdict)
        outcome: Outcome = "passed" if found.outcome == "promoted" else "refused"
        tested = found.sealed and found.sealed.candidate
        return self._answer(f"version {self.version} against {against}", outcome, found.reason, found.sealed, tested)

    def _with(self, match: Match, version: int) -> Match:
        """The match against a version; beside it runs its anchor, where it has one."""
        settings, project = self.context.settings, self.context.project
        live = load_program(settings, f"{project.name}@{version}", project.location)
        match = replace(match, champion=live.program, tuned_on=match.tuned_on | _trained(live))
        if live.manifest is None or live.manifest.anchor is None:
            return match
        earlier = load_program(settings, f"{project.name}@{live.manifest.anchor}", project.location)
        return replace(match, anchor=earlier.program, tuned_on=match.tuned_on | _trained(earlier))

    def on_another_model(self, model: str, tolerance: float) -> Reproof:
        there = replace(self.context, settings=with_model(self.context.settings, model))
        prompt, now, then = prompt_of(self.loaded.program), there.connection.model, self.context.connection.model
        match = replace(self.match, context=there, champion=self.loaded.program, cheaper_may=False)
        sealed = match.sealed_rows()
        opening = match.open_sealed(
            sealed,
            {
                "candidate": digest(prompt, now),
                "champion": digest(prompt, then),
                "rate": match.false_promotion_rate,
            },
        )
        reports = (
            match.score(self.loaded.program, sealed, "champion on the new model, on sealed"),
            self.match.score(self.loaded.program, sealed, "champion on today's model, on sealed"),
        )
        seen = match.weigh(opening, *reports).evidence
        assert seen is not None  # the rows were opened
        outcome: Outcome = "holds" if seen.low > -tolerance else "fell" if seen.high < 0 else "undecided"
        words = {
            "holds": f"At most {100 * tolerance:g} points are lost",
            "fell": "It is worse",
            "undecided": f"A loss of more than {100 * tolerance:g} points is not ruled out",
        }
        question = f"the champion on {now} against on {then}"
        return self._answer(question, outcome, f"{words[outcome]}: {_points(seen)}.", seen, reports[0])

    def _answer(
        self, question: str, outcome: Outcome, reason: str, seen: Evidence | None, report: Report | None
    ) -> Reproof:
        project, manifest = self.context.project, self.loaded.manifest
        score = report and SealedScore(mean=report.mean, low=report.low, high=report.high, n=report.n)
        then = _score_then(manifest.reports) if manifest else None
        note = ""
        if score is not None and then is not None and score.mean < then.low:
            note = f"It scored {then.mean:.3f} when it was made ({then.low:.3f} to {then.high:.3f}), and scores {score.mean:.3f} now."
        return Reproof(
            project=project.name,
            version=self.version,
            location=project.location,
            question=question,
            outcome=outcome,
            reason=reason,
            evidence=seen and Evidence(**{name: getattr(seen, name) for name in Evidence.model_fields}),
            score=score,
            score_then=then,
            note=note,
        )


def _points(seen: Evidence) -> str:
    return f"{100 * seen.delta:+.1f} points on {seen.n} sealed rows, {100 * seen.low:+.1f} to {100 * seen.high:+.1f}"


def _score_then(reports: dict[str, Any]) -> SealedScore | None:
    """Of a manifest's reports; None where the sealed rows were not opened, or an earlier toolkit wrote it otherwise."""
    try:
        return SealedScore(**{name: reports["comparison"]["candidate"][name] for name in SealedScore.model_fields})
    except (KeyError, TypeError, ValidationError):
        return None


def _trained(loaded: LoadedProgram) -> frozenset[str]:
    return frozenset(loaded.manifest.trained_rows if loaded.manifest else ())


def _place(reference: str) -> str:
    """A project's place, where the reference is one and no name."""
    return reference if project_name(reference) != reference else ""


def _record(settings: Settings, made: Reproof, model: str) -> None:
    parameters = {"version": made.version, "question": made.question, "model": model or settings.lm.model}
    seen = made.evidence
    measured = (
        {"sealed_delta": seen.delta, "sealed_delta_low": seen.low, "sealed_delta_high": seen.high} if seen else {}
    )
    # Not the tag `outcome`: it marks runs that decided about a promotion.
    tags = {"reproof": made.outcome, "reason": made.reason}
    record_run(settings, made.project, f"reprove {made.project}@{made.version}", parameters, measured, tags=tags)
