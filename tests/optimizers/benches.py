"""A project in files with a fake model, and the steps of its optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dspy_toolkit.datasets import Dataset
from dspy_toolkit.lm.connection import Connection
from dspy_toolkit.optimizers import Choice, Compiled, Profile
from dspy_toolkit.pipeline.compare import compare
from dspy_toolkit.pipeline.compile import compile as compile_step
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import prepare
from dspy_toolkit.pipeline.probe import probe
from dspy_toolkit.pipeline.record import record
from dspy_toolkit.pipeline.release import release
from dspy_toolkit.pipeline.resolve import resolve
from dspy_toolkit.pipeline.select import select
from dspy_toolkit.project import ProjectRef
from dspy_toolkit.run import (
    CompareInput,
    Comparison,
    CompileInput,
    ReleasedRun,
    Request,
    Run,
    SearchInput,
    SelectInput,
)
from dspy_toolkit.settings import Settings
from tests.optimizers.toys import Toy, by_instruction, records, write_project


class Bench:
    """A project in files, and the fake behind it. Each step has a context of its own, as tasks in other processes have."""

    def __init__(self, home: Settings, folder: Path) -> None:
        self.toy = Toy(home)
        self.toy.knows = by_instruction
        self.connection: Connection = self.toy.connect()
        self.location = str(write_project(folder, records(110)))

    def context(self, **settings: Any) -> Context:
        opened = Context.open(self.location, self.toy.settings.model_copy(update=settings))
        return Context(opened.project, opened.settings, lambda _: self.connection)

    def resolve(self, start: str | None = None) -> ProjectRef:
        return resolve(self.context(), Request(location=self.location, start=start))

    def begin(self, start: str | None = None) -> tuple[ProjectRef, Dataset, SearchInput]:
        ref = self.resolve(start)
        data = prepare(self.context(), ref.data)
        return ref, data, SearchInput.of(ref, data)

    def probe(self, search: SearchInput) -> Profile:
        return probe(self.context(), search.without_start)

    def select(
        self, search: SearchInput, profile: Profile, optimizer: str | None, budget: str | None, **settings: Any
    ) -> Choice:
        given = SelectInput(**dict(search), profile=profile, optimizer=optimizer, budget=budget)
        return select(self.context(**settings), given)

    def compile(self, search: SearchInput, choice: Choice, profile: Profile) -> Compiled:
        return compile_step(self.context(), CompileInput(**dict(search), choice=choice, profile=profile))

    def compare(self, ref: ProjectRef, data: Dataset, choice: Choice, compiled: Compiled) -> Comparison:
        return compare(self.context(), CompareInput.of(ref, data, choice, compiled))

    def find(self, optimizer: str = "gepa", budget: str | None = None, start: str | None = None) -> Run:
        """The steps up to the verdict; the baseline is not made a version."""
        ref, data, search = self.begin(start)
        profile = self.probe(search)
        choice = self.select(search, profile, optimizer, budget)
        compiled = self.compile(search, choice, profile)
        comparison = self.compare(ref, data, choice, compiled)
        return Run(
            name="a run",
            ref=ref,
            dataset=data,
            profile=profile,
            choice=choice,
            compiled=compiled,
            comparison=comparison,
        )

    def release(self, run: Run) -> ReleasedRun:
        return release(self.context(), run)

    def whole(self, **options: Any) -> tuple[ReleasedRun, str]:
        """All steps; with the MLflow run's id."""
        run = self.release(self.find(**options))
        return run, record(self.context(), run)
