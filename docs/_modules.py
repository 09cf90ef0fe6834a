"""A page for each public package of the library, and the page of the errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from _source import Definition, Source, markdown, read

LEFT_OUT = {"cli", "errors", "projects", "settings"}
"""They have pages of another kind, or are no library."""


def module_pages(library: Path) -> dict[str, str]:
    """File name → Markdown, for the library itself and every package and module directly in it."""
    pages = {}
    for path in sorted(library.iterdir()):
        file = path / "__init__.py" if path.is_dir() else path
        name = path.stem
        if file.suffix != ".py" or not file.is_file() or name in LEFT_OUT or (name.startswith("_") and path.is_dir()):
            continue
        dotted = library.name if name == "__init__" else f"{library.name}.{name}"
        names = list(_public(file))
        if names:
            pages[f"{dotted}.md"] = _page(dotted, read(file), names)
    return pages


def errors_page(path: Path) -> str:
    """The tree of errors, then each of them."""
    source = read(path)
    parts = ["# Errors", f"```text\n{source.docstring}\n```"]
    for name, node in source.definitions().items():
        if isinstance(node, ast.ClassDef):
            parts.append(f"## `{name}`\n\n{markdown(ast.get_docstring(node) or '')}")
    return "\n\n".join(parts)


def _page(dotted: str, source: Source, names: list[tuple[Source, Definition | None, str]]) -> str:
    parts = [f"# `{dotted}`"]
    if source.docstring:
        parts.append(f"```text\n{source.docstring}\n```")
    for where, node, name in names:
        parts.append(f"## `{name}`")
        if node is not None:
            parts += _definition(where, node)
        else:
            parts += _constant(where, name)
    return "\n\n".join(part for part in parts if part)


def _definition(source: Source, node: Definition) -> Iterator[str]:
    yield f"```python\n{source.head(node)}\n```"
    yield markdown(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        fields = [f"- `{written}`" + (f"  \n  {text}" if text else "") for _, written, text in source.fields(node)]
        yield "\n".join(fields)
        for method in source.methods(node):
            yield f"```python\n{source.head(method)}\n```"
            yield markdown(ast.get_docstring(method) or "")


def _constant(source: Source, name: str) -> Iterator[str]:
    for node in source.tree.body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == name:
            yield f"```python\n{ast.get_source_segment(source.text, node)}\n```"


def _public(file: Path) -> Iterator[tuple[Source, Definition | None, str]]:
    """(file, definition, name): what a package's `__all__` names, or what a module defines."""
    source = read(file)
    if file.name != "__init__.py":
        yield from ((source, node, name) for name, node in source.definitions().items())
        return
    for name in sorted(_all(source), key=str.lower):
        found = _find(source, name)
        yield (*found, name)


def _all(source: Source) -> list[str]:
    for node in source.tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _find(source: Source, name: str) -> tuple[Source, Definition | None]:
    """Follow the imports of a package until the file that defines `name`."""
    if name in source.definitions():
        return source, source.definitions()[name]
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and any((alias.asname or alias.name) == name for alias in node.names)
        ):
            package = next(parent for parent in source.path.parents if parent.name == node.module.split(".")[0])
            place = package.parent.joinpath(*node.module.split("."))
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            return _find(read(file), next(alias.name for alias in node.names if (alias.asname or alias.name) == name))
    return source, None
