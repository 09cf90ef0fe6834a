"""Five tasks of different shapes, from the work that the toolkit is for: training runs, their notes and their tickets.

router   a choice: which project handles a request (the built-in project's own training and validation rows)
record   a typed record read out of a note; the share of right fields
minutes  a number; how close it is
cause    two steps, find the symptom and then name its cause; right or wrong
title    a short title in a house style; the words it shares with the expected one

The rows are drawn from templates by a seed: the same rows on every machine, no network, no file. They stand in for
real ones in shape and tone, and say nothing about how well a model reads real notes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspy_toolkit.project import Project
    from dspy_toolkit.settings import Settings

Record = dict[str, Any]

NAMES = ("router", "record", "minutes", "cause", "title")


@dataclass(frozen=True)
class Task:
    """A project and where its rows come from."""

    project: Project
    records: Callable[[Settings], list[Record]]
    """Makes the rows; the settings are for a task whose rows lie in a project of the toolkit."""

    @property
    def name(self) -> str:
        """The project's."""
        return self.project.name


def find_task(name: str) -> Task:
    """The task called `name`. Raises KeyError."""
    if name not in NAMES:
        raise KeyError(f"There is no task {name!r}. Take one of {', '.join(NAMES)}.")
    module = import_module(f"{__name__}.{name}")  # DSPy is imported with it, not with the names
    return Task(module.project, module.records)
