"""Which way imports point, and how long the first one takes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dspy_toolkit

ROOT = Path(__file__).parents[1]
LAYERS = {
    "dspy_toolkit": {"prefect", "tasks", "flows", "deployments"},
    "tasks": {"flows", "deployments"},
    "flows": {"deployments"},
}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_nothing_above_it(layer: str) -> None:
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & LAYERS[layer], path


def test_public_names_are_sorted_and_all_there() -> None:
    assert dspy_toolkit.__all__ == sorted(dspy_toolkit.__all__)
    for name in dspy_toolkit.__all__:
        assert getattr(dspy_toolkit, name).__name__ == name


HEAVY = ("dspy", "mlx", "mlflow", "litellm", "transformers", "pandas", "prefect")


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import dspy_toolkit", (*HEAVY, "pydantic")),
        # What `--help` waits for.
        ("import dspy_toolkit.cli", (*HEAVY, "pydantic", "rich.table")),
        # What a command that lists programs waits for, beside MLflow itself.
        (
            "import dspy_toolkit.settings, dspy_toolkit.registry, dspy_toolkit.registry.references",
            HEAVY,
        ),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str, heavy: tuple[str, ...]) -> None:
    asked = f"import sys; {code}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
