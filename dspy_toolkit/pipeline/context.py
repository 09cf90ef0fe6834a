"""What the steps share: one project under one configuration, the store between steps, and the language models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dspy_toolkit.durable import make_home
from dspy_toolkit.lm.connection import Connection, connect
from dspy_toolkit.project import Project, load_project
from dspy_toolkit.settings import Settings
from dspy_toolkit.store import Store

Progress = Callable[[int, int, str], None]
"""Told (done, all, what is going on), from any thread."""


@dataclass(frozen=True, eq=False)
class Context:
    """One project under one configuration."""

    project: Project
    settings: Settings
    connecting: Callable[[Settings], Connection] = connect
    """Gives the language models; another one in tests and benchmarks."""
    records: list[dict[str, Any]] | None = None
    """Rows in memory, in place of the project's file."""

    @classmethod
    def open(cls, location: str, settings: Settings) -> Context:
        """Find the project and the settings that hold for it. Raises ProjectError or SettingsError."""
        project = load_project(location, settings)
        return cls(project, settings.for_project(project.name))

    @cached_property
    def store(self) -> Store:
        """Where steps leave what they hand on."""
        make_home(self.settings.path())
        return Store(self.settings.objects)

    @cached_property
    def connection(self) -> Connection:
        """The language models; loaded by their first call."""
        return self.connecting(self.settings)
