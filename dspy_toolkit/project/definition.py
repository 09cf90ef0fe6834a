"""A project: a program to optimize, what a good answer is, and the rows that show it.

Covered: the fields and their checks, making a fresh program. Not covered: reading the dataset (`dspy_toolkit.datasets`).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, get_args

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.errors import ProjectError, nearest
from dspy_toolkit.metrics import Metric, outputs_needed
from dspy_toolkit.settings import OptimizerName, parse_budget
from dspy_toolkit.user_code import describe_error, missing_file

if TYPE_CHECKING:
    import dspy

ReferenceRule: TypeAlias = "Callable[[list[dspy.Example]], Callable[[dspy.Example], dspy.Prediction]]"
"""Fits a rule that needs no language model to the training examples; the rule answers an example's inputs."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Project:
    """What is optimized, and how it is judged.

    Raises:
        ProjectError: a field does not fit.
    """

    name: str
    """Lower-case letters, digits, `-` and `_`; the registry's model has the same name."""
    summary: str
    """One line for people."""
    program: Callable[[], dspy.Module]
    """Makes a fresh, unoptimized program. `build` calls it with its errors explained."""
    metric: Metric
    dataset: DatasetSpec
    optimizer: str = "auto"
    """`auto`, `race`, or one generator: `formats`, `labels`, `labelled`, `knn`, `bootstrap`, `random`, `mipro`, `gepa`, `simba`,
    `finetune` or `together`."""
    budget: str | None = None
    """`light`, `medium`, `heavy`, LM calls (`800`) or a time (`15m`); the settings' when None."""
    abstain_below: float | None = None
    """In (0, 1]: a prediction that is less sure than this is marked as abstained (`abstention`); None: none is."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Old field name → new, for versions that were saved before a field was renamed."""
    reference_rules: Mapping[str, ReferenceRule] = field(default_factory=dict)
    """Simple rules to print beside the program's score: name → what fits one to the training rows."""
    files: tuple[str, ...] = ()
    """What the program or the metric reads, relative to `folder`: files, folders, or patterns such as `rules/*.md`. A result is
    made anew when one of them changes.
    """
    folder: Path = Path()
    """What `dataset.source` and `files` are relative to; the folder of the project's file when it is not given."""
    location: str = ""
    """What `load_project` finds this project by; it sets it."""
    code: str = field(default="", repr=False)
    """The text of the files that the project was loaded from; `load_project` sets it."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ProjectError(
                f"project name {self.name!r} cannot be used. "
                "Take lower-case letters, digits, - and _, with a letter or digit first."
            )
        for key in ("program", "metric"):
            if not callable(value := getattr(self, key)):
                raise ProjectError(f"project {self.name}: {key} is {value!r}. Give a function.")
        if not isinstance(self.dataset, DatasetSpec):
            raise ProjectError(f"project {self.name}: dataset is {self.dataset!r}. Give a DatasetSpec.")
        if isinstance(self.files, str):
            raise ProjectError(f'project {self.name}: files is {self.files!r}. Write a list: files = ["…"].')
        self._check_metric()
        if self.optimizer not in (known := get_args(OptimizerName)):
            raise ProjectError(f"project {self.name}: no optimizer {self.optimizer!r}.{nearest(self.optimizer, known)}")
        if (below := self.abstain_below) is not None and (
            isinstance(below, bool) or not isinstance(below, int | float) or not 0 < below <= 1
        ):
            raise ProjectError(
                f"project {self.name}: abstain_below is {below!r}. Give a confidence above 0 and at most 1, such as 0.6."
            )
        if self.budget is not None:
            try:
                parse_budget(self.budget)
            except ValueError as error:
                raise ProjectError(f"project {self.name}: {error}.") from None

    def _check_metric(self) -> None:
        """A metric that compares with outputs finds them among the dataset's."""
        for metric, fields in outputs_needed(self.metric).items():
            if not self.dataset.outputs:
                raise ProjectError(
                    f"project {self.name}: dataset.outputs is empty. {metric} needs one to compare with."
                )
            for name in fields:
                if name not in self.dataset.outputs:
                    hint = nearest(name, self.dataset.outputs)
                    raise ProjectError(
                        f"project {self.name}: fields of {metric} has {name!r}, which is not in dataset.outputs.{hint}"
                    )

    @property
    def data_path(self) -> Path:
        """Where the rows are: `dataset.source` from `folder`, absolute."""
        return (self.folder / Path(self.dataset.source).expanduser()).resolve()

    @property
    def declared_files(self) -> dict[str, Path]:
        """The files that `files` stands for: their names from `folder` → where they are.

        Raises:
            ProjectError: an entry stands for none.
        """
        found: dict[str, Path] = {}
        for entry in self.files:
            place = self.folder / Path(entry).expanduser()
            if place.is_dir():
                paths = place.rglob("*")
            else:
                matches = [entry] if place.is_file() else glob.glob(entry, root_dir=self.folder, recursive=True)
                paths = (self.folder / Path(match).expanduser() for match in matches)
            if not (here := [path for path in paths if path.is_file()]):
                raise ProjectError(f"project {self.name}: files has {entry!r}. {missing_file(place)}")
            for path in here:
                inside = path.is_relative_to(self.folder)
                found[path.relative_to(self.folder).as_posix() if inside else path.name] = path
        return dict(sorted(found.items()))

    def build(self) -> dspy.Module:
        """A fresh program.

        Raises:
            ProjectError: the factory raised, or did not return a `dspy.Module` with a predictor in it.
        """
        import dspy

        try:
            program = self.program()
        except Exception as error:  # isolation boundary: a user's factory may raise anything
            raise ProjectError(f"project {self.name}: its program cannot be made: {describe_error(error)}.") from error
        if not isinstance(program, dspy.Module):
            raise ProjectError(f"project {self.name}: its program is {program!r}. Return a dspy.Module.")
        if not program.predictors():
            raise ProjectError(f"project {self.name}: its program has no predictor. Put a dspy.Predict into it.")
        return program
