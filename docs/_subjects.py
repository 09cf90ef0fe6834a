"""Pages of the built-in projects with their signatures, of the flows with their parameters, and of the metrics with their options."""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from _source import markdown, read

GROUP = "dspy_toolkit.projects"


def projects_page(root: Path) -> str:
    """A section for each built-in project: its fields, its instructions, its metric and its rows."""
    declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    parts = ["# Built-in projects", "They are projects as anybody's would be, and are installed with the library."]
    for name, place in sorted(declared.items()):
        module, _, attribute = place.partition(":")
        parts += _project(name, getattr(import_module(module), attribute))
    return "\n\n".join(parts)


def _project(name: str, project: Any) -> Iterator[str]:
    from dspy_toolkit.metrics import name_of

    spec = project.dataset
    yield f"## `{name}`\n\n{project.summary}."
    rows = [
        ("rows", f"`{spec.source}`"),
        ("inputs", ", ".join(f"`{field}`" for field in spec.inputs)),
        (
            "outputs",
            ", ".join(f"`{field}`" for field in spec.outputs) or "none: the metric knows how good an answer is",
        ),
        ("metric", f"`{name_of(project.metric)}`"),
        ("reference rules", ", ".join(project.reference_rules) or "none"),
    ]
    yield "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])
    for predictor, found in project.build().named_predictors():
        signature = found.signature
        title = f"### {name}: what `{predictor}` is asked" if predictor != "self" else f"### {name}: what it is asked"
        lines = ["| field | | type | |", "|---|---|---|---|"]
        for field, about in signature.fields.items():
            role = "input" if field in signature.input_fields else "output"
            said = (about.json_schema_extra or {}).get("desc", "")
            lines.append(
                f"| `{field}` | {role} | `{_typed(about.annotation)}` | {'' if said.startswith('${') else said} |"
            )
        quoted = "\n".join(f"> {line}".rstrip() for line in signature.instructions.splitlines())
        yield f"{title}\n\n{quoted}\n\n" + "\n".join(lines)


def _typed(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    return text.replace("|", "\\|")


def flows_page(root: Path) -> str:
    """A section for each flow: how it is started, its parameters. Read from the files: nothing of Prefect is imported."""
    parts = ["# Flows", "They are run in a clone, by hand as shown, or by a deployment (`prefect.yaml`)."]
    for path in sorted((root / "flows").glob("*.py")):
        source = read(path)
        for name, node in source.definitions().items():
            if isinstance(node, ast.FunctionDef) and any(_is_flow(each) for each in node.decorator_list):
                parts.append(f"## `{name}`\n\n```sh\npython -m flows.{path.stem} --help\n```")
                parts.append(f"```python\n{source.head(node)}\n```")
                parts.append(markdown(ast.get_docstring(node) or ""))
    return "\n\n".join(part for part in parts if part)


def _is_flow(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Name) and called.id == "flow"


def metrics_page() -> str:
    """A section for each metric that a project may name."""
    from dspy_toolkit.metrics.composites import weighted
    from dspy_toolkit.metrics.judging import judge
    from dspy_toolkit.metrics.naming import BUILT_IN
    from dspy_toolkit.metrics.pairwise import pairwise

    parts = [
        "# Metrics",
        "By these names a project's file takes them; [the guide](../metrics.md) says when to take which.",
    ]
    made = {"judge": judge, "pairwise": pairwise, "weighted": weighted}
    for name, metric in sorted({**BUILT_IN, **made}.items()):
        parts.append(f"## `{name}`\n\n```python\n{name}{inspect.signature(metric)}\n```")  # pyright: ignore[reportArgumentType]
        parts.append(markdown(inspect.getdoc(metric) or ""))
    return "\n\n".join(part for part in parts if part)
