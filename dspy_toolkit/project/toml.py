"""A project with no Python at all: one TOML file.

    name = "questions"
    summary = "Classify a question by the type of its answer"
    signature = 'text: str -> label: Literal["description", "entity", "human"]'
    instructions = "Classify the question by the type of its answer."
    module = "predict"              # or chain_of_thought
    metric = "exact_match"          # a built-in, "module:function" (looked for beside this file first), or a table
    optimizer = "auto"              # or race, or one alone: formats, labels, labelled, knn, mipro, finetune, …
    budget = "light"                # or medium, heavy, "800" LM calls, "15m"
    abstain_below = 0.6             # a prediction that is less sure is marked as abstained; left out: none is
    files = ["rules/*.md"]          # what the metric reads, so that a change of it is seen
    [dataset]
    source = "questions.csv"        # csv, jsonl, parquet; relative to this file
    inputs = ["text"]
    outputs = ["label"]

A metric with options is a table, and so is one that is made of others (`dspy_toolkit.metrics.resolving`):

    metric = { name = "numeric_closeness", tolerance = 0.05 }

`[dataset]` may also hold fractions, stratify, group and seed. Needed: name, signature and dataset. An unknown key is
refused with the nearest known one.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ValidationError, field_validator

from dspy_toolkit.datasets import DatasetSpec
from dspy_toolkit.errors import ProjectError, nearest
from dspy_toolkit.metrics import resolve_metric
from dspy_toolkit.project.definition import Project
from dspy_toolkit.project.signatures import parse_signature
from dspy_toolkit.settings import BudgetName, OptimizerName
from dspy_toolkit.store import Frozen
from dspy_toolkit.user_code import missing_file

if TYPE_CHECKING:
    import dspy


class _Table(Frozen):
    name: str
    summary: str = ""
    signature: str
    instructions: str | None = None
    module: Literal["predict", "chain_of_thought"] = "predict"
    metric: Any = "exact_match"
    """A name, or a table with a name and options."""
    optimizer: OptimizerName = "auto"
    budget: BudgetName | None = None
    abstain_below: float | None = None
    files: tuple[str, ...] = ()
    dataset: DatasetSpec

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: Any) -> Any:
        if not isinstance(metric, str | dict):
            raise ValueError('Write a name, or a table: metric = { name = "…" }')
        return metric


def read_toml(location: str) -> Project:
    """The project in the TOML file at `location`.

    Raises:
        ProjectError: the file cannot be read, is not TOML (with its line), has an unknown key or a value that does not
            fit, or its signature and its dataset do not name the same fields.
    """
    path = Path(location).expanduser().resolve()
    if not path.is_file():
        raise ProjectError(missing_file(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"{location} cannot be read: {error}. Save it as UTF-8 text.") from error
    try:
        table = _Table.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ProjectError(f"{location}, {_place(error, text)} It is not TOML.") from None
    except ValidationError as error:
        raise ProjectError(_explain(error, location)) from None
    try:
        signature = parse_signature(table.signature, table.instructions)
        _compare_fields(signature, table.dataset)
        return Project(
            name=table.name,
            summary=table.summary,
            program=_factory(table.module, signature),
            metric=resolve_metric(table.metric, path.parent),
            dataset=table.dataset,
            optimizer=table.optimizer,
            budget=table.budget,
            abstain_below=table.abstain_below,
            files=table.files,
            folder=path.parent,
            location=location,
            code=text,
        )
    except ProjectError as error:
        raise ProjectError(f"{location}: {error}") from error


def _factory(module: str, signature: type[dspy.Signature]) -> Any:
    def make() -> dspy.Module:
        import dspy

        return dspy.ChainOfThought(signature) if module == "chain_of_thought" else dspy.Predict(signature)

    return make


def _compare_fields(signature: type[dspy.Signature], dataset: DatasetSpec) -> None:
    for role, columns, fields in (
        ("input", dataset.inputs, signature.input_fields),
        ("output", dataset.outputs, signature.output_fields),
    ):
        for column in columns:
            if column not in fields:
                raise ProjectError(
                    f"dataset.{role}s has {column!r}, which is no {role} of the signature.{nearest(column, fields)}"
                )
    # An output without a column is not scored; an input without one would leave the program without its value.
    if missing := [name for name in signature.input_fields if name not in dataset.inputs]:
        raise ProjectError(f"the signature's input {missing[0]!r} has no column. Add it to dataset.inputs.")


def _place(error: tomllib.TOMLDecodeError, text: str) -> str:
    message = str(error)
    found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)", message)
    if found is None:
        return message
    line, column = found.groups()
    place = f"line {line}, column {column}" if line else f"line {len(text.splitlines())}"
    return f"{place}: {message[: found.start()]}."


def _explain(error: ValidationError, location: str) -> str:
    """One line a fault, with the nearest known key for an unknown one."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False):
        *owner, key = [str(part) for part in fault["loc"]]
        name = ".".join([*owner, key])
        if fault["type"] == "extra_forbidden":
            lines.append(f"{location}: unknown key {name}.{nearest(key, _keys(owner))}")
        elif fault["type"] == "missing":
            lines.append(f"{location}: {name} is missing. Add it.")
        elif fault["type"] == "tuple_type":
            lines.append(f'{location}: {name} is {fault["input"]!r}. Write a list: {key} = ["…"].')
        else:
            message = fault["msg"].removeprefix("Value error, ").rstrip(".")
            lines.append(f"{location}: {name} is {fault['input']!r}. {message}.")
    return "\n".join(lines)


def _keys(owner: list[str]) -> list[str]:
    """The known keys of the table at `owner`."""
    table: Any = _Table
    for part in owner:
        kind = table.model_fields[part].annotation if part in table.model_fields else table
        # A table that may be left out is of its own type or None.
        table = next((each for each in get_args(kind) if hasattr(each, "model_fields")), kind)
    return list(table.model_fields) if isinstance(table, type) and issubclass(table, BaseModel) else []
