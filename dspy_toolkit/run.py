"""The values that travel from step to step of an optimization, in the order of the steps.

    Request → ProjectRef → Dataset → SearchInput → Profile → SelectInput → Choice → CompileInput → Compiled
            → CompareInput → Comparison → Run → ReleasedRun

Each is small, frozen and plain JSON; what is big travels as a `Ref`. A step's result is cached under the value it is given, so
a value holds what its step depends on and nothing else. Each says where its project is (`location`) and what the project is
called (`project`), so that a step can run in any process.

Values that belong to one subject alone are defined there: `ProjectRef` (project), `Dataset` (datasets), `Profile`, `Choice` and
`Compiled` (optimizers), `Decision` (registry).
"""

from __future__ import annotations

from dspy_toolkit.datasets import Dataset
from dspy_toolkit.evaluation import Report
from dspy_toolkit.gate.evidence import Evidence
from dspy_toolkit.gate.verdict import Outcome, PromotedFor
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.optimizers.pool.scoring import ScoreJob
from dspy_toolkit.project import ChampionPart, NightPart, ProgramPart, ProjectRef, StartPart
from dspy_toolkit.registry import Decision
from dspy_toolkit.store import Frozen, Ref

CLOCKED = ("seconds_per_call", "usd_per_call", "completion_tokens")
"""What of a profile differs with the clock and the cache."""


class Request(Frozen):
    """What is asked for, before anything was read."""

    location: str
    """The project: a name, `path/to/file.py:attr` or `path/to/file.toml`."""
    start: str | None = None
    """The program that the search starts from: `project@champion`, `project@3`, a folder or a project."""

    @property
    def project(self) -> str:
        """The location stands for the name, which is not known yet."""
        return self.location


class SearchInput(Frozen):
    """A program and two of the three splits: all that a search may see."""

    program: ProgramPart
    train: Ref
    val: Ref
    start: StartPart | None = None
    """A program from elsewhere: it is scored as one more candidate, and built on where it leads."""
    night: NightPart = NightPart()
    """What earlier searches have left: more such candidates, and what is not tried again."""

    @classmethod
    def of(cls, ref: ProjectRef, dataset: Dataset) -> SearchInput:
        """What of these a search depends on."""
        return cls(program=ref.program, train=dataset.train, val=dataset.val, start=ref.start, night=ref.night)

    @property
    def location(self) -> str:
        """Where the project is."""
        return self.program.location

    @property
    def project(self) -> str:
        """The project's name."""
        return self.program.project

    @property
    def without_start(self) -> SearchInput:
        """The same search from the baseline alone: what is found of the baseline holds wherever a search starts."""
        return SearchInput(program=self.program, train=self.train, val=self.val)


class SelectInput(SearchInput):
    """What the choice of an optimizer is made from."""

    profile: Profile
    optimizer: str | None = None
    """As asked for; None: the project's, else the settings'."""
    budget: str | None = None


class CompileInput(SearchInput):
    """A search, chosen."""

    choice: Choice
    profile: Profile | None = None
    """What `choice` was made from."""

    @property
    def unexplained(self) -> CompileInput:
        """This without words, forecasts and what the clock had a part in: a search is not made again because a sentence reads
        differently.
        """
        profile = self.profile and self.profile.model_copy(update=dict.fromkeys(CLOCKED, 0.0) | {"reflector_note": ""})
        return self.model_copy(update={"choice": self.choice.unexplained, "profile": profile})


class ScoreInput(SearchInput):
    """A candidate to be scored on some validation rows."""

    job: ScoreJob


class CompareInput(Frozen):
    """A candidate, the champion, and the rows to tell them apart by."""

    program: ProgramPart
    champion: ChampionPart
    candidate: Ref
    """The compiled program's state."""
    dataset: Dataset
    val_rows: int
    """Validation rows that the candidate was chosen by; 0 for all."""
    start: StartPart | None = None
    night: NightPart = NightPart()
    false_promotion_rate: float
    """Over the life of the sealed rows, in (0, 1)."""

    @classmethod
    def of(cls, ref: ProjectRef, dataset: Dataset, choice: Choice, compiled: Compiled) -> CompareInput:
        """What of these the comparison depends on."""
        return cls(
            program=ref.program,
            champion=ref.champion,
            candidate=compiled.program,
            dataset=dataset,
            val_rows=choice.val_rows,
            start=ref.start,
            night=ref.night,
            false_promotion_rate=ref.false_promotion_rate,
        )

    @property
    def location(self) -> str:
        """Where the project is."""
        return self.program.location

    @property
    def project(self) -> str:
        """The project's name."""
        return self.program.project


class SealedTest(Evidence):
    """Two programs on the same sealed rows, and what that shows."""

    candidate: Report
    champion: Report


class Comparison(Frozen):
    """How a candidate fared against the champion."""

    outcome: Outcome
    reason: str
    """One sentence for people."""
    promoted_for: PromotedFor | None = None
    """What a candidate that passed is better in."""
    anchor: int | None = None
    """The version that was last promoted for quality, this candidate apart; None where no version is live."""
    candidate_val: Report | None
    champion_val: Report | None
    """On the validation rows that candidates were compared on; None when the candidate is the champion."""
    sealed: SealedTest | None
    """None when the sealed rows were not opened."""
    reference_rules: dict[str, float]
    """What simple rules score on the sealed rows; empty when they were not opened."""


class Compilation(Frozen):
    """What the steps found, up to the compiled program; `compare_optimizers` stops here."""

    name: str
    """For people, as MLflow shows it."""
    ref: ProjectRef
    dataset: Dataset
    profile: Profile
    choice: Choice
    compiled: Compiled

    @property
    def location(self) -> str:
        """Where the project is."""
        return self.ref.location

    @property
    def project(self) -> str:
        """The project's name."""
        return self.ref.name


class Run(Compilation):
    """What the steps found, up to the verdict of the gate."""

    comparison: Comparison


class ReleasedRun(Run):
    """A run whose candidate was promoted or not."""

    decision: Decision
