"""The steps of an optimization, one method each, with what they share: the project, the settings, the store, the models.

    resolve → prepare → probe → select → compile → challenge → release → record

`dspy_toolkit.optimize` calls them one after the other; the tasks of a flow call one each, in whatever process it runs. A
step takes and gives small values and references; the store holds the rest.

Not covered: caching and retrying steps (the orchestrator does), and what a person sees of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from dspy_toolkit.challenge import Challenge, challenge
from dspy_toolkit.datasets import Dataset, from_records, prepare, read_rows
from dspy_toolkit.lm.connection import Connection, connect, model_names
from dspy_toolkit.metrics import name_of
from dspy_toolkit.optimizers import Choice, Compiled, Profile, compile_program, find_budget, probe, select
from dspy_toolkit.optimizers.search import Progress
from dspy_toolkit.plots import comparison_plot
from dspy_toolkit.programs import load_program
from dspy_toolkit.project import ChampionPart, Project, ProjectRef, fingerprint_program, load_project, resolve
from dspy_toolkit.registry import Decision, Manifest, champion, promote, save_version
from dspy_toolkit.registry.manifest import MANIFEST_FILE, PROGRAM_FILE, manifest_bytes, program_bytes
from dspy_toolkit.settings import Settings
from dspy_toolkit.signatures import fields_of, signature_hash
from dspy_toolkit.store import Ref, Store, digest
from dspy_toolkit.tracking import close_failed, open_run, record_run

if TYPE_CHECKING:
    import dspy

PACKAGES = ("dspy-toolkit", "dspy", "gepa", "litellm", "llguidance", "mlx", "mlx-lm", "optuna", "transformers")


@dataclass(frozen=True)
class Run:
    """What the steps of one optimization found, up to the decision."""

    name: str
    ref: ProjectRef
    dataset: Dataset
    profile: Profile
    choice: Choice
    compiled: Compiled
    challenge: Challenge


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

    def resolve(self) -> ProjectRef:
        """Everything that can change a result, read now. Never cached."""
        task, reflection = model_names(self.settings)
        live = champion(self.settings, self.project.name)
        return resolve(self.project, self.settings, model=task, reflection_model=reflection, champion=live)

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
        return probe(
            self.project.build(),
            self.store.read_frame(train),
            self.store.read_frame(val),
            self.project.dataset,
            self.project.metric,
            self.connection,
            self.store,
            seed=self.settings.optimize.seed,
            threads=self.settings.optimize.threads,
            progress=progress,
        )

    def select(self, profile: Profile, optimizer: str | None, budget: str | None) -> Choice:
        """Choose an optimizer; what is None is taken from the project, then from the settings."""
        project, defaults = self.project, self.settings.optimize
        asked = optimizer or (project.optimizer if project.optimizer != "auto" else defaults.optimizer)
        return select(profile, asked, find_budget(budget or project.budget or defaults.budget))

    def fingerprint(self) -> str:
        """Of the program, its metric and its models; see `ProgramPart`."""
        task, reflection = model_names(self.settings)
        return fingerprint_program(self.project, self.settings, model=task, reflection_model=reflection)

    def compile(
        self, fingerprint: str, choice: Choice, train: Ref, val: Ref, progress: Progress | None = None
    ) -> Compiled:
        """Search for a better prompt on the training and validation rows; `fingerprint` is the program's."""
        # All that the result depends on, so that a checkpoint is never picked up by something else.
        key = digest(fingerprint, choice.model_dump(exclude={"reason", "alternatives"}), train, val)
        return compile_program(
            self.project.build(),
            choice,
            self.store.read_frame(train),
            self.store.read_frame(val),
            self.project.dataset,
            self.project.metric,
            self.connection,
            self.store,
            checkpoint=self.settings.path("checkpoints", key[:32]),
            seed=self.settings.optimize.seed,
            threads=self.settings.optimize.threads,
            progress=progress,
        )

    def challenge(
        self, live: ChampionPart, compiled: Compiled, choice: Choice, dataset: Dataset, progress: Progress | None = None
    ) -> Challenge:
        """Put the compiled program against the champion (the fresh program, while there is none)."""
        champion_program, tuned_on = self.project.build(), frozenset[str]()
        if live.version is not None:
            loaded = load_program(self.settings, f"{self.project.name}@{live.version}", self.project.location)
            champion_program = loaded.program
            tuned_on = frozenset(loaded.manifest.trained_rows if loaded.manifest else ())
        return challenge(
            self.project,
            self.program(compiled),
            champion_program,
            dataset,
            self.settings,
            self.connection,
            self.store,
            val_rows=choice.val_rows,
            tuned_on=tuned_on,
            progress=progress,
        )

    def program(self, compiled: Compiled) -> dspy.Module:
        """The compiled program, ready to be called."""
        program = self.project.build()
        program.load_state(self.store.read_json(compiled.program))
        return program

    def manifest(self, run: Run) -> Manifest:
        """Where the compiled program came from, and how it scored."""
        program, challenged = self.project.build(), run.challenge
        rows = [self.store.read_frame(part)["_row"] for part in (run.dataset.train, run.dataset.val)]
        reports: dict[str, Any] = {"compiled": run.compiled.model_dump(mode="json", exclude={"program"})}
        for name in ("candidate_val", "champion_val", "comparison"):
            if (report := getattr(challenged, name)) is not None:
                reports[name] = report.model_dump(mode="json")
        return Manifest(
            project=self.project.name,
            location=self.project.location,
            signature_fields={name: str(annotation) for name, annotation in fields_of(program).items()},
            signature_sha256=signature_hash(program),
            optimizer=run.compiled.optimizer,
            optimizer_settings=run.choice.settings,
            model=run.ref.program.model,
            split_sha256={name: getattr(run.dataset, name).sha256 for name in ("train", "val", "sealed")},
            trained_rows=tuple(sorted(str(row) for part in rows for row in part)),
            metric=name_of(self.project.metric),
            reports=reports,
            packages={package: version(package) for package in PACKAGES},
            previous_champion=run.ref.champion.version,
        )

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

        Raises:
            RegistryError: MLflow cannot be written.
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
        return record_run(
            self.settings,
            self.project.name,
            run.name,
            {
                "optimizer": compiled.optimizer,
                "settings": run.choice.settings,
                "budget": run.choice.budget,
                "model": run.ref.program.model,
                "reflection_model": run.ref.program.reflection_model,
                "seed": self.settings.optimize.seed,
                "data": run.ref.data.fingerprint,
                "program": run.ref.program.fingerprint,
                "champion_before": decision.previous,
                "metric": name_of(self.project.metric),
            },
            self._measures(run),
            artifacts,
            {"outcome": decision.outcome, "reason": decision.reason, "version": decision.version},
            tables=tables,
            run_id=run_id,
        )

    def _measures(self, run: Run) -> dict[str, Any]:
        compiled, comparison = run.compiled, run.challenge.comparison
        measures: dict[str, Any] = {
            "probe_baseline": run.profile.baseline,
            "val_baseline": compiled.val_baseline,
            "val_candidate": compiled.val_mean,
            "trial_val_mean": [trial.val_mean for trial in compiled.trials],
            "compile_lm_calls": compiled.lm_calls,
            "compile_physical_calls": compiled.physical_calls,
            "compile_prompt_tokens": compiled.prompt_tokens,
            "compile_seconds": compiled.seconds,
        }
        if comparison is not None:
            measures |= {
                "sealed_candidate": comparison.candidate.mean,
                "sealed_champion": comparison.champion.mean,
                "sealed_delta": comparison.delta,
                "sealed_delta_low": comparison.low,
                "sealed_delta_high": comparison.high,
                "sealed_looks": comparison.looks,
                "alpha_left": comparison.alpha_left,
                "tokens_ratio": comparison.tokens_ratio,
            }
            measures |= {f"reference_{name.replace(' ', '_')}": mean for name, mean in run.challenge.references.items()}
        return measures

    def plot(self, run: Run) -> bytes | None:
        """The comparison as a PNG; None when the sealed rows were not opened."""
        if (comparison := run.challenge.comparison) is None:
            return None
        live = run.ref.champion.version
        return comparison_plot(
            comparison.champion if live is None else None,
            comparison.candidate,
            None if live is None else comparison.champion,
            comparison.delta,
            comparison.low,
            comparison.high,
            level=comparison.level,
            title=f"{self.project.name}: {run.challenge.outcome}",
            metric=name_of(self.project.metric),
            against="the fresh program" if live is None else f"version {live}",
        )
