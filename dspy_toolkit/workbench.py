"""The steps of an optimization, one method each, with what they share: the project, the settings, the store, the models.

    resolve → prepare → probe → select → compile → challenge → release → record

`dspy_toolkit.optimize` calls them one after the other; the tasks of a flow call one each, in whatever process it runs. A
step takes and gives small values and references; the store holds the rest.

Not covered: caching and retrying steps (the orchestrator does), and what a person sees of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_toolkit.challenge import Challenge, challenge
from dspy_toolkit.datasets import Dataset, from_records, prepare, read_rows
from dspy_toolkit.errors import ProjectError, RegistryError
from dspy_toolkit.history import PastRun, read_history
from dspy_toolkit.lm.connection import Connection, connect, model_names
from dspy_toolkit.metrics import name_of
from dspy_toolkit.optimizers import (
    Budget,
    Choice,
    Compiled,
    Problem,
    Profile,
    compile_program,
    find_budget,
    probe,
    select,
)
from dspy_toolkit.optimizers.experience import alike
from dspy_toolkit.optimizers.laps import Lap, LapResult, run_lap
from dspy_toolkit.optimizers.search import Progress
from dspy_toolkit.optimizers.starting import choose_with_start
from dspy_toolkit.optimizers.states import fill, state_of
from dspy_toolkit.programs import LoadedProgram, lasting_location, load_program
from dspy_toolkit.project import (
    ChampionPart,
    Project,
    ProjectRef,
    StartPart,
    fingerprint_program,
    load_project,
    resolve,
)
from dspy_toolkit.recording import (
    Run,
    measures_of,
    measures_of_compiling,
    parameters_of,
    parameters_of_compiling,
    plot_of,
)
from dspy_toolkit.registry import Decision, Manifest, champion, promote, save_version
from dspy_toolkit.registry.lock import registry_lock
from dspy_toolkit.registry.manifest import MANIFEST_FILE, PROGRAM_FILE, manifest_bytes, program_bytes
from dspy_toolkit.report import keep_report, render_report
from dspy_toolkit.settings import Settings
from dspy_toolkit.signatures import fields_of, signature_hash
from dspy_toolkit.store import Ref, Store
from dspy_toolkit.tracking import close_failed, open_run, record_run
from dspy_toolkit.warm_start import find_start, parent_of, start_program, trained_rows

if TYPE_CHECKING:
    import dspy

__all__ = ["PACKAGES", "Workbench"]

log = logging.getLogger(__name__)

PACKAGES = ("dspy-toolkit", "dspy", "gepa", "litellm", "llguidance", "mlx", "mlx-lm", "optuna", "transformers")

FIRST_SECONDS = 300.0
"""How long to wait while another run makes a project's first version."""


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
        project = load_project(location)
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
        if champion(self.settings, self.project.name).version is not None:
            return
        # Of two runs that begin at once, the second finds the first one's.
        with registry_lock(self.settings, FIRST_SECONDS, "first-champion.lock"):
            if champion(self.settings, self.project.name).version is None:
                self._make_champion()

    def _make_champion(self) -> None:
        name, settings = self.project.name, self.settings
        program = self.project.build()
        made = Manifest(
            **self._origin(program),
            optimizer="none",
            model=model_names(settings)[0],
        )
        run_id = open_run(settings, name, f"{name} as it is")
        try:
            saved = save_version(settings, name, state_of(program), made, run_id)
            promote(settings, name, saved, compared_with=ChampionPart())
        except BaseException:
            close_failed(settings, run_id)
            raise
        record_run(
            settings, name, f"{name} as it is", {"optimizer": "none"}, {}, tags={"version": saved}, run_id=run_id
        )

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
        if self.wishes(optimizer, None)[0] != "auto":
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
        lap: Lap,
        train: Ref,
        val: Ref,
        progress: Progress | None = None,
        start: StartPart | None = None,
    ) -> LapResult:
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
        loaded = self._live_program(live)
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
        program, challenged = self.project.build(), run.challenge
        rows = [self.store.read_frame(part)["_row"] for part in (run.dataset.train, run.dataset.val)]
        inherited = trained_rows(run.ref.start, run.dataset.sealed, self.project.dataset, self.store)
        reports: dict[str, Any] = {"compiled": run.compiled.model_dump(mode="json", exclude={"program"})}
        for name in ("candidate_val", "champion_val", "comparison"):
            if (report := getattr(challenged, name)) is not None:
                reports[name] = report.model_dump(mode="json")
        return Manifest(
            **self._origin(program),
            optimizer=run.compiled.optimizer,
            optimizer_settings=run.choice.settings,
            model=run.ref.program.model,
            split_sha256={name: getattr(run.dataset, name).sha256 for name in ("train", "val", "sealed")},
            trained_rows=tuple(sorted({*inherited, *(str(row) for part in rows for row in part)})),
            reports=reports,
            parent=parent_of(run.ref.start, self.project),
            previous_champion=run.ref.champion.version,
        )

    def _origin(self, program: dspy.Module) -> dict[str, Any]:
        """What every manifest of this project says."""
        return {
            "project": self.project.name,
            "location": lasting_location(self.project.location),
            "signature_fields": {name: str(annotation) for name, annotation in fields_of(program).items()},
            "signature_sha256": signature_hash(program),
            "metric": name_of(self.project.metric),
            "packages": {package: found for package in PACKAGES if (found := _version(package))},
        }

    def release(self, run: Run) -> tuple[Decision, str | None]:
        """Keep and promote a program that passed the gate; (the decision, the MLflow run that holds the version).

        Raises:
            RegistryError: the version could not be kept or promoted; the old champion stays.
        """
        live, challenged = run.ref.champion, run.challenge
        if challenged.outcome != "promoted":
            decision = Decision(
                outcome=challenged.outcome, reason=challenged.reason, version=None, previous=live.version
            )
            return decision, None
        name = self.project.name
        run_id = open_run(self.settings, name, run.name)
        try:
            state = self.store.read_json(run.compiled.program)
            saved = save_version(self.settings, name, state, self.manifest(run), run_id)
            promote(self.settings, name, saved, compared_with=live)
        except BaseException:
            close_failed(self.settings, run_id)
            raise
        decision = Decision(outcome="promoted", reason=challenged.reason, version=saved, previous=live.version)
        return decision, run_id

    def record(self, run: Run, decision: Decision, run_id: str | None) -> str:
        """Write the whole run into MLflow, and return its run's id. Complete also when every step came from a cache.

        Its page is among the run's files, and at `report_path`.

        Raises:
            RegistryError: MLflow cannot be written.
            StoreError: the home cannot be written.
        """
        compiled, challenged, comparison = run.compiled, run.challenge, run.challenge.comparison
        artifacts: dict[str, bytes | str] = {
            "profile.json": run.profile.model_dump_json(indent=2),
            "choice.json": run.choice.model_dump_json(indent=2),
            "decision.json": decision.model_dump_json(indent=2),
            "dataset.json": self.store.read(run.dataset.report),
            f"program/{PROGRAM_FILE}": program_bytes(self.store.read_json(compiled.program)),
        }
        if run_id is None:  # a promoted version has its manifest already, written last
            artifacts[f"program/{MANIFEST_FILE}"] = manifest_bytes(
                self.manifest(run).model_copy(update={"program_sha256": compiled.program.sha256})
            )
        if (figure := self.plot(run)) is not None:
            artifacts["comparison.png"] = figure
        tables = {}
        for split, report in (("val", challenged.candidate_val), ("sealed", comparison and comparison.candidate)):
            if report is not None:
                tables[f"rows_{split}.json"] = self.store.read_frame(report.rows)
        artifacts["report.html"] = page = self.report(run, decision)
        if run_id is None:
            run_id = open_run(self.settings, self.project.name, run.name)
        try:
            keep_report(self.report_path(run_id), page)
        except BaseException:
            close_failed(self.settings, run_id)
            raise
        return record_run(
            self.settings,
            self.project.name,
            run.name,
            parameters_of(run, self.project, self.settings),
            measures_of(run),
            artifacts,
            {"outcome": decision.outcome, "reason": decision.reason, "version": decision.version},
            tables=tables,
            run_id=run_id,
        )

    def record_race(
        self, ref: ProjectRef, dataset: Dataset, profile: Profile, choice: Choice, found: Compiled, name: str
    ) -> str:
        """Write a race that stopped before the sealed test into MLflow, and return its run's id.

        Raises:
            RegistryError: MLflow cannot be written.
        """
        return record_run(
            self.settings,
            self.project.name,
            name,
            parameters_of_compiling(ref, dataset, profile, choice, found, self.project, self.settings),
            measures_of_compiling(profile, choice, found),
            {
                "profile.json": profile.model_dump_json(indent=2),
                "choice.json": choice.model_dump_json(indent=2),
                "race.json": found.model_dump_json(indent=2),
                f"program/{PROGRAM_FILE}": program_bytes(self.store.read_json(found.program)),
            },
            {"outcome": "compared", "reason": found.summary},
        )

    def plot(self, run: Run) -> bytes | None:
        """The comparison as a PNG; None when the sealed rows were not opened."""
        return plot_of(run, self.project)

    def report(self, run: Run, decision: Decision) -> str:
        """The run's page: one HTML text that needs nothing beside it. See `dspy_toolkit.report`."""
        before = self._state_before(run.ref.champion)
        return render_report(run, self.project, self.store, decision, before, when=datetime.now(UTC))

    def report_path(self, run_id: str) -> Path:
        """Where `record` keeps the page of the MLflow run `run_id`."""
        return self.settings.path("reports", self.project.name, f"{run_id}.html")

    def _state_before(self, live: ChampionPart) -> dict[str, Any] | None:
        """Of the program that a candidate was compared with; None where its version can no longer be read."""
        try:
            return state_of(self._live_program(live).program)
        except (RegistryError, ProjectError) as error:
            # The comparison was made when it could be: a page that lacks one half is better than no record of the run.
            log.warning("The report goes without the program before: %s", error)
            return None

    def _live_program(self, live: ChampionPart) -> LoadedProgram:
        """The champion; the fresh program while there is none."""
        if live.version is None:
            return LoadedProgram(self.project.build(), None, self.project)
        return load_program(self.settings, f"{self.project.name}@{live.version}", self.project.location)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a machine without mlx, where another engine answers
        return None
