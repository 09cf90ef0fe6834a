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
    parts = ["# Built-in projects", "They are projects as anybody's would be, and are installed with the library."]
    for name, project in _projects(root).items():
        parts += _project(name, project)
    return "\n\n".join(parts)


def _projects(root: Path) -> dict[str, Any]:
    declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    places = {name: place.partition(":") for name, place in sorted(declared.items())}
    return {name: getattr(import_module(module), attribute) for name, (module, _, attribute) in places.items()}


def _project(name: str, project: Any) -> Iterator[str]:
    spec, program = project.dataset, project.build()
    yield f"## `{name}`\n\n{project.summary}."
    rows = [
        ("rows", f"`{spec.source}`"),
        ("inputs", ", ".join(f"`{field}`" for field in spec.inputs)),
        (
            "outputs",
            ", ".join(f"`{field}`" for field in spec.outputs) or "none: the metric knows how good an answer is",
        ),
        ("program", f"`{type(program).__name__}` of `{type(program).__module__}`"),
        ("metric", f"[`{_metric_name(project)}`](metrics.md#{_metric_name(project)})"),
        ("reference rules", ", ".join(project.reference_rules) or "none"),
    ]
    yield "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])
    for predictor, found in program.named_predictors():
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


def _metric_name(project: Any) -> str:
    """Of the metric, or of the function that made it: what has a section of its own."""
    from dspy_toolkit.metrics import name_of

    return name_of(project.metric).rpartition(":")[2].partition(".<locals>")[0]


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
                by_hand = '__name__ == "__main__"' in source.text
                how = (
                    f"```sh\npython -m flows.{path.stem} --help\n```"
                    if by_hand
                    else "Another run starts it, nobody by hand."
                )
                parts.append(f"## `{name}`\n\n{how}")
                parts.append(f"```python\n{source.head(node)}\n```")
                parts.append(markdown(ast.get_docstring(node) or ""))
    return "\n\n".join(part for part in parts if part)


def _is_flow(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Name) and called.id == "flow"


def metrics_page(root: Path) -> str:
    """A section for each metric that a project may name, and for those of the built-in projects."""
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
    own: dict[str, list[str]] = {}
    for project, found in _projects(root).items():
        if (name := _metric_name(found)) not in (*BUILT_IN, *made):
            own.setdefault(f"{found.metric.__module__}:{name}", []).append(project)
    for place, projects in sorted(own.items()):
        module, _, name = place.partition(":")
        metric = getattr(import_module(module), name)
        parts.append(f"## `{name}`\n\nOf `{module}`, for the built-in projects {', '.join(projects)}.")
        source = read(Path(inspect.getfile(metric)))
        parts.append(f"```python\n{source.head(source.definitions()[name])}\n```")
        parts.append(markdown(inspect.getdoc(metric) or ""))
    return "\n\n".join(part for part in parts if part)
