"""Types of flow arguments that a command line checks before anything runs."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from dspy_toolkit.settings import parse_budget


def _check(kind: object, value: str | None) -> None:
    if value is not None:
        parse_budget(value)


BudgetOption = Annotated[str | None, Parameter(validator=_check)]
"""`light`, `medium`, `heavy`, LM calls (`800`) or a time (`15m`)."""
