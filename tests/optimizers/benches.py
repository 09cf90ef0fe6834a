"""A project in files with a fake model, and the steps of its optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dspy_toolkit.pipeline.record import Run
from dspy_toolkit.pipeline.workbench import Workbench
from dspy_toolkit.registry import Decision
from dspy_toolkit.settings import Settings
from tests.optimizers.toys import Toy, by_instruction, records, write_project

Pipeline = tuple[Run, Decision, str]


class Bench:
    """A project in files, its workbench, and the fake behind it."""

    def __init__(self, home: Settings, folder: Path) -> None:
        self.toy = Toy(home)
        self.toy.knows = by_instruction
        self.connection = self.toy.connect()
        self.location = str(write_project(folder, records(110)))

    def open(self, **settings: Any) -> Workbench:
        bench = Workbench.open(self.location, self.toy.settings.model_copy(update=settings))
        bench.__dict__["connection"] = self.connection
        return bench

    def find(self, optimizer: str = "gepa", budget: str | None = None, start: str | None = None) -> Run:
        """The steps up to the decision, each on a workbench of its own, as tasks in other processes have."""
        ref = self.open().resolve(start)
        data = self.open().prepare()
        profile = self.open().probe(data.train, data.val)
        choice = self.open().select(profile, optimizer, budget, start=ref.start)
        compiled = self.open().compile(ref.program.fingerprint, choice, data.train, data.val, start=ref.start)
        challenged = self.open().challenge(ref.champion, compiled, choice, data, start=ref.start)
        return Run(
            name="a run",
            ref=ref,
            dataset=data,
            profile=profile,
            choice=choice,
            compiled=compiled,
            challenge=challenged,
        )

    def whole(self, **options: Any) -> Pipeline:
        run = self.find(**options)
        decision, run_id = self.open().release(run)
        return run, decision, self.open().record(run, decision, run_id)
