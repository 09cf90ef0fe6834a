"""The steps of an optimization, one method each, with what they share: the project, the settings, the store, the models.

    resolve → prepare → probe → select → compile → challenge → release → record

`dspy_toolkit.optimize` calls them one after the other; the tasks of a flow call one each, in whatever process it runs. A
step takes and gives small values and references; the store holds the rest.

Not covered: how a step is done (`datasets`, `optimizers`, `challenge`, `release` and `recording`, which a step brings
together with what is shared), caching and retrying steps (the orchestrator does), and what a person sees of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.datasets import Dataset, from_records, prepare, read_rows
from dspy_toolkit.errors import ProjectError, RegistryError
from dspy_toolkit.lm.connection import Connection, connect, model_names
from dspy_toolkit.optimizers import Choice, Compiled, Problem, Profile, compile_program, probe, select
from dspy_toolkit.optimizers.budget import Budget, find_budget
from dspy_toolkit.optimizers.plan.similar_runs import alike
from dspy_toolkit.optimizers.race.arm_run import ArmRun, ArmRunResult, run_lap
from dspy_toolkit.optimizers.search.search import Progress
from dspy_toolkit.optimizers.search.transfer import choose_with_start
from dspy_toolkit.optimizers.states import fill
from dspy_toolkit.pipeline.compare import Challenge, challenge
from dspy_toolkit.pipeline.record import Compilation, Run, plot_of, record, record_race, report_of, report_path
from dspy_toolkit.pipeline.release import ensure_champion, manifest_of, release
from dspy_toolkit.pipeline.source import find_start, start_program, trained_rows
from dspy_toolkit.project import (
    ChampionPart,
    Project,
    ProjectRef,
    StartPart,
    fingerprint_program,
    load_project,
    resolve,
)
from dspy_toolkit.project.signatures import fields_of
from dspy_toolkit.registry import Decision, Manifest, champion
from dspy_toolkit.registry.programs import live_program
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Ref, Store
from dspy_toolkit.tracking.history import PastRun, read_history

if TYPE_CHECKING:
    import dspy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workbench:
    """One project under one configuration."""

    project: Project
    settings: Settings
    records: list[dict[str, Any]] | None = None
    """Rows in memory, in place of the project's file."""

    @classmethod
    def open(cls, location: str, settings: Settings) -> Workbench:
        """Find the project and the settings that hold for it. Raises ProjectError or SettingsError."""
        project = load_project(location, settings)
        return cls(project, settings.for_project(project.name))

    @cached_property
    def store(self) -> Store:
        """Where steps leave what they hand on."""
        return Store(self.settings.objects)

    @cached_property
    def connection(self) -> Connection:
        """The language models; loaded by their first call."""
        return connect(self.settings)

    def ensure_champion(self) -> None:
        """Where nothing is live yet, make the project's own program version 1 and the champion.

        It is what the first candidate has to beat, what answers meanwhile, and where rolling back ends.

        Raises:
            RegistryError: it could not be kept.
        """
        ensure_champion(self.project, self.settings)

    def resolve(self, start: str | None = None) -> ProjectRef:
        """Everything that can change a result, read now. Never cached.

        Args:
            start: the program that the search starts from, as `find_start` understands it.
        """
        task, reflection = model_names(self.settings)
        live = champion(self.settings, self.project.name)
        return resolve(
            self.project,
            self.settings,
            model=task,
            reflection_model=reflection,
            champion=live,
            start=self.start(start) if start else None,
        )

    def start(self, reference: str | dspy.Module) -> StartPart:
        """What this project can take from another program. Raises ProjectError when no predictor fits."""
        return find_start(reference, self.project, self.settings, self.store)

    def prepare(self) -> Dataset:
        """Read, check and split the rows into three objects of the store."""
        project, data = self.project, self.settings.data
        frame = read_rows(project.data_path) if self.records is None else from_records(self.records)
        return prepare(
            frame,
            project.dataset,
            fields_of(project.build()),
            self.store,
            drop_bad_rows=data.drop_bad_rows,
            near_duplicate=data.near_duplicate,
            # Rows in memory belong to no file whose rows could be remembered.
            remembered=self.settings.path("splits", f"{project.name}.jsonl") if self.records is None else None,
            origin=str(project.dataset.source),
        )

    def probe(self, train: Ref, val: Ref, progress: Callable[[int, int], None] | None = None) -> Profile:
        """Look at the program before anything is spent."""
        return probe(self._problem(train, val), progress)

    def wishes(self, optimizer: str | None, budget: str | None) -> tuple[str, str]:
        """(optimizer, budget): what is None is taken from the project, then from the settings."""
        project, defaults = self.project, self.settings.optimize
        asked = optimizer or (project.optimizer if project.optimizer != "auto" else defaults.optimizer)
        return asked, budget or project.budget or defaults.budget

    def experience(self, profile: Profile, optimizer: str | None) -> tuple[PastRun, ...]:
        """Earlier runs like this one, for `select`; none for an optimizer that was asked for by name.

        A history that cannot be read is a warning: it makes a choice better, and its absence must not cost the run.
        """
        # A race begins with what `auto` would take.
        if self.wishes(optimizer, None)[0] not in ("auto", "race"):
            return ()
        try:
            runs = read_history(self.settings).runs
        except RegistryError as error:
            log.warning("Chosen without the history of earlier runs. %s", error)
            return ()
        return alike(runs, profile, model_names(self.settings)[0])

    def select(
        self,
        profile: Profile,
        optimizer: str | None,
        budget: str | None,
        history: Sequence[PastRun] = (),
        start: StartPart | None = None,
    ) -> Choice:
        """Choose an optimizer; None is as `wishes` says.

        Args:
            history: what `experience` gave.
            start: what the search starts from; scoring it is part of the budget.
        """
        asked, granted = self.wishes(optimizer, budget)
        whole = find_budget(granted)

        def choose(part: Budget) -> Choice:
            return select(profile, asked, part, history, started=start is not None)

        return choose(whole) if start is None else choose_with_start(choose, profile, whole)

    def fingerprint(self) -> str:
        """Of the program, its metric and its models; see `ProgramPart`."""
        task, reflection = model_names(self.settings)
        return fingerprint_program(self.project, self.settings, model=task, reflection_model=reflection)

    def compile(
        self,
        fingerprint: str,
        choice: Choice,
        train: Ref,
        val: Ref,
        progress: Progress | None = None,
        start: StartPart | None = None,
        *,
        profile: Profile | None = None,
    ) -> Compiled:
        """Search for a better prompt on the training and validation rows.

        Args:
            fingerprint: the program's when the run began. What is cached under it must come from that program.
            start: what the search starts from where it is better than the project's own program.
            profile: what `choice` was made from; a race needs it.

        Raises:
            ProjectError: the program, its metric or its models have changed since.
        """
        self._check_unchanged(fingerprint)
        return compile_program(self._problem(train, val, start), choice, profile=profile, progress=progress)

    def run_lap(
        self,
        fingerprint: str,
        lap: ArmRun,
        train: Ref,
        val: Ref,
        progress: Progress | None = None,
        start: StartPart | None = None,
    ) -> ArmRunResult:
        """One lap of one arm of a race; see `compile` for the arguments and errors."""
        self._check_unchanged(fingerprint)
        return run_lap(self._problem(train, val, start), lap, progress)

    def _problem(self, train: Ref, val: Ref, start: StartPart | None = None) -> Problem:
        return Problem(
            program=self.project.build(),
            train=self.store.read_frame(train),
            val=self.store.read_frame(val),
            spec=self.project.dataset,
            metric=self.project.metric,
            connection=self.connection,
            store=self.store,
            start=start_program(start, self.project, self.store),
            seed=self.settings.optimize.seed,
            threads=self.settings.optimize.threads,
        )

    def _check_unchanged(self, fingerprint: str) -> None:
        now = self.fingerprint()
        # One that differs each time, of a program made by chance, says nothing.
        if now != fingerprint and now == self.fingerprint():
            raise ProjectError(
                f"The project {self.project.name} has changed since this run began ({fingerprint[:12]} became "
                f"{now[:12]}). Run it again."
            )

    def challenge(
        self,
        live: ChampionPart,
        compiled: Compiled,
        choice: Choice,
        dataset: Dataset,
        progress: Progress | None = None,
        start: StartPart | None = None,
    ) -> Challenge:
        """Put the compiled program against the champion (the fresh program, while there is none).

        Rows that the champion, or what the search started from, was tuned on test neither.
        """
        loaded = live_program(live, self.project, self.settings)
        tuned_on = frozenset(loaded.manifest.trained_rows if loaded.manifest else ())
        return challenge(
            self.project,
            self.program(compiled),
            loaded.program,
            dataset,
            self.settings,
            self.connection,
            self.store,
            val_rows=choice.val_rows,
            tuned_on=tuned_on | trained_rows(start, dataset.sealed, self.project.dataset, self.store),
            progress=progress,
        )

    def program(self, compiled: Compiled) -> dspy.Module:
        """The compiled program, ready to be called."""
        return fill(self.project.build(), self.store.read_json(compiled.program))

    def manifest(self, run: Run) -> Manifest:
        """Where the compiled program came from, and how it scored."""
        return manifest_of(run, self.project, self.store)

    def release(self, run: Run) -> tuple[Decision, str | None]:
        """Keep and promote a program that passed the gate; (the decision, the MLflow run that holds the version).

        Raises:
            RegistryError: the version could not be kept or promoted; the old champion stays.
        """
        return release(run, self.project, self.settings, self.store)

    def record(self, run: Run, decision: Decision, run_id: str | None) -> str:
        """Write the whole run into MLflow, and return its run's id. Complete also when every step came from a cache.

        Its page is among the run's files, and at `report_path`.

        Raises:
            RegistryError: MLflow cannot be written.
            StoreError: the home cannot be written.
        """
        return record(run, decision, run_id, self.project, self.settings, self.store)

    def record_race(
        self, ref: ProjectRef, dataset: Dataset, profile: Profile, choice: Choice, found: Compiled, name: str
    ) -> str:
        """Write a race that stopped before the sealed test into MLflow, and return its run's id.

        Raises:
            RegistryError: MLflow cannot be written.
        """
        made = Compilation(name=name, ref=ref, dataset=dataset, profile=profile, choice=choice, compiled=found)
        return record_race(made, self.project, self.settings, self.store)

    def plot(self, run: Run) -> bytes | None:
        """The comparison as a PNG; None when the sealed rows were not opened."""
        return plot_of(run, self.project)

    def report(self, run: Run, decision: Decision) -> str:
        """The run's page: one HTML text that needs nothing beside it. See `dspy_toolkit.report`."""
        return report_of(run, decision, self.project, self.settings, self.store)

    def report_path(self, run_id: str) -> Path:
        """Where `record` keeps the page of the MLflow run `run_id`."""
        return report_path(run_id, self.project, self.settings)
