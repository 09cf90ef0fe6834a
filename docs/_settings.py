"""The page of the settings: every one with its type, default, environment variable and description."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from _source import Source, read
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def settings_page(path: Path) -> str:
    """Markdown: a table for each section."""
    from dspy_toolkit.settings import Section, Settings

    source, sections = read(path), read(path.with_name("sections.py"))
    parts = ["# Settings", f"```text\n{source.docstring}\n```"]
    own: dict[str, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            parts.append(f"## `[{name}]`")
            if section.__doc__:
                parts.append(section.__doc__.strip())
            where = sections if section.__module__ == "dspy_toolkit.sections" else source
            parts.append(_table(where, section, section.model_fields, (name,)))
        else:
            own[name] = field
    parts.insert(2, "## At the top\n\n" + _table(source, Settings, own, ()))
    return "\n\n".join(parts)


def _table(source: Source, owner: type[BaseModel], fields: dict[str, FieldInfo], section: tuple[str, ...]) -> str:
    from dspy_toolkit.settings import PREFIX

    classes = {node.name: node for node in source.tree.body if isinstance(node, ast.ClassDef)}
    about: dict[str, tuple[str, str]] = {}
    for parent in reversed(owner.__mro__):  # a section that stands on another repeats what it changes only
        if (node := classes.get(parent.__name__)) is not None:
            about |= {name: (written, text) for name, written, text in source.fields(node)}
    lines = ["| setting | type | default | what |", "|---|---|---|---|"]
    for name, field in fields.items():
        written, text = about[name]
        variable = PREFIX + "__".join((*section, name)).upper()
        kind = source.resolve(re.sub(r"^\w+: ", "", written).split(" = ", 1)[0]) + _bounds(field)
        dotted = ".".join((*section, name))
        cells = [f"`{dotted}`<br>`{variable}`", f"`{kind}`", _default(field), text]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(part, key)}" for part in field.metadata for key, sign in signs.items() if hasattr(part, key)
    ]
    return f", {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is None:
        return "not set"
    return f"`{value}`" if not isinstance(value, dict) else "none"
