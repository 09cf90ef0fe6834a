"""An advisor: what a project has to say of itself so that advice can be given from its measured runs.

A project registers one under the entry-point group `dspy_toolkit.advisors`, beside its project of the same name. The four built-in
ones are written so, and so is a fifth: `docs/projects/index.md` shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dspy_toolkit.advising.cells import Cell, Frame, Value
from dspy_toolkit.advising.landscape import LOSS, Columns, Surrogate, check_runs, held_out_errors
from dspy_toolkit.advising.situation import UNKNOWN, Situation
from dspy_toolkit.errors import DatasetError, ProjectError, nearest

if TYPE_CHECKING:
    import numpy as np

GROUP = "dspy_toolkit.advisors"


class Configuration(Protocol):
    """What is exported: a pydantic model with ranges, whose `to_yaml` writes what a tool reads."""

    def to_yaml(self, tool: str = "") -> str:
        """The text of the tool's configuration; the first of `tools` when none is named."""
        ...

    def model_dump(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Facts:
    """What code found out, not a model: numbers with their unit, and the formula and source of each estimate."""

    values: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()
    """Constraints that no configuration meets, such as a model that does not fit in the memory."""


def no_facts(situation: Any, given: Mapping[str, str]) -> Facts:
    """A project without facts of its own."""
    return Facts()


@dataclass(frozen=True)
class Advisor:
    """What advice on a project needs."""

    name: str
    situation: type[Situation]
    columns: Columns
    runs_file: Path
    """Parquet, one row a run."""
    objective: Callable[[Any, Any], Any]
    """(runs, situation) → what is minimized, a column in the native unit."""
    allowed: Callable[[Any, Mapping[str, Any]], str]
    """(situation, configuration) → why it is not allowed; empty where it is."""
    configure: Callable[[Any, Mapping[str, Any], Facts], Configuration]
    """(situation, measured configuration, facts) → what is exported."""
    default: Mapping[str, Value]
    """The measured configuration nearest to what the real tool does when it is told nothing."""
    default_note: str
    unit: str
    """Of the loss, such as `accuracy points`."""
    describe: Callable[[float], str]
    """The predicted loss as a person reads it."""
    cost: Callable[[Mapping[str, Any]], float]
    """What orders configurations that are equally good: the cheapest comes first."""
    context_of: Callable[[Any], dict[str, str]]
    """Situation → the parts of the context that it knows."""
    outside: Callable[[Any], list[str]]
    """Why a situation is outside the measured ground; empty where it is inside."""
    cells: Callable[..., tuple[Cell, ...]]
    keywords: Callable[[str], dict[str, str]]
    """The reader that needs no model."""
    facts: Callable[[Any, Mapping[str, str]], Facts] = no_facts
    objective_fields: tuple[str, ...] = ()
    """Fields of the situation that the objective depends on."""
    given: Mapping[str, str] = field(default_factory=dict)
    """Options that are facts and no fields, such as a model's folder: name → help."""
    loss_column: str = ""
    """The outcome that the loss is made of, for reports."""

    @cached_property
    def runs(self) -> Frame:
        """The committed runs.

        Raises:
            DatasetError: they cannot be read, or lack a column.
        """
        import pandas as pd

        try:
            found = pd.read_parquet(self.runs_file)
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{self.runs_file} cannot be read: {error}. Install the package again, or measure anew: "
                f"python -m flows.measure_landscape --project {self.name}"
            ) from error
        return check_runs(found, self.columns, str(self.runs_file))

    def scored(self, situation: Any, runs: Frame | None = None) -> Frame:
        """Runs (the committed ones by default) with what is minimized in the situation."""
        found: Frame = self.runs if runs is None else runs
        return found.assign(**{LOSS: self.objective(found, situation)})

    def objective_key(self, situation: Any) -> tuple[str, ...]:
        """What the loss depends on: situations that agree on it share a surrogate."""
        return tuple(getattr(situation, name) for name in self.objective_fields)

    def surrogate(self, situation: Any, own: Frame | None = None) -> Surrogate:
        """The surrogate for a situation, fitted once for each objective where there are no own runs."""
        if own is not None and len(own):
            return Surrogate(self.scored(situation), self.columns, own=self.scored(situation, own))
        cache, key = self._cache, ("surrogate", *self.objective_key(situation))
        if key not in cache:
            cache[key] = Surrogate(self.scored(situation), self.columns)
        return cache[key]

    def errors(self, situation: Any) -> np.ndarray:
        """The errors on held-out families, for the range."""
        cache, key = self._cache, ("errors", *self.objective_key(situation), *self.restriction(situation))
        if key not in cache:
            cache[key] = held_out_errors(self.scored(situation), self.columns, self.permits(situation))
        return cache[key]

    def restriction(self, situation: Any) -> tuple[str, ...]:
        """Which measured configurations the situation rules out, as a key."""
        rows = self.configurations()
        return tuple("1" if self.allowed(situation, row) else "0" for row in rows)

    def configurations(self) -> list[dict[str, Any]]:
        """The distinct measured configurations."""
        names = list(self.columns.configuration)
        return [
            {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
            for row in self.runs[names].drop_duplicates().to_dict("records")
        ]

    def permits(self, situation: Any) -> Callable[[Mapping[str, Any]], bool]:
        """Whether a measured configuration is allowed in the situation."""
        return lambda configuration: not self.allowed(situation, configuration)

    @cached_property
    def _cache(self) -> dict[Any, Any]:
        return {}


def context_from(names: Sequence[str]) -> Callable[[Situation], dict[str, str]]:
    """A `context_of` for contexts whose parts have the names of the situation's fields."""

    def context_of(situation: Situation) -> dict[str, str]:
        return {name: value for name in names if (value := getattr(situation, name)) != UNKNOWN}

    return context_of


def advisor_names() -> list[str]:
    """The names under which advisors are registered."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load_advisor(name: str) -> Advisor:
    """The advisor that is registered under a name.

    Raises:
        ProjectError: there is none, or it cannot be loaded.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise ProjectError(f"There is no advice on {name!r}.{nearest(name, found)}")
    try:
        advisor = found[name].load()
    except (ImportError, AttributeError) as error:
        raise ProjectError(
            f"The advisor {name} ({found[name].value}) cannot be loaded: {error}. Install its package again."
        ) from error
    if not isinstance(advisor, Advisor):
        raise ProjectError(f"{found[name].value} is {type(advisor).__name__}, not an Advisor. See docs/projects.")
    return advisor
