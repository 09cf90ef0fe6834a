"""Every command that ends with a result prints it as JSON when asked: `--json`, and nothing else, is the way to ask."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from cyclopts import App

from dspy_toolkit.cli import app
from dspy_toolkit.cli.options import Json

RUN_UNTIL_STOPPED = {"serve", "mcp"}


def commands(of: App, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, function) of each command below `of`."""
    if of.default_command is not None:
        yield path.strip(), of.default_command
    for name in of:
        if not name.startswith("-"):
            yield from commands(of[name], f"{path} {name}")


FOUND = dict(commands(app))


def test_the_commands_are_found() -> None:
    assert len(FOUND) > 35
    assert {"data check", "programs list", "serve keys add", "predict", "gate"} <= set(FOUND)


@pytest.mark.parametrize("path", sorted(set(FOUND) - RUN_UNTIL_STOPPED))
def test_a_result_is_printed_as_json_when_asked(path: str) -> None:
    parameters = inspect.signature(FOUND[path], eval_str=True).parameters
    assert "json" in parameters and parameters["json"].annotation == Json
