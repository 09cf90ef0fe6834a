"""Reading what the pages show from the source itself: signatures as they are written, docstrings, fields.

Nothing is imported, so a page depends on neither the machine nor the versions of other packages.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Example|Examples|Note):")
SHOWN = {"property", "cached_property", "classmethod", "staticmethod"}
"""Decorators that change how a method is called."""


@dataclass(frozen=True)
class Source:
    """A parsed file."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def docstring(self) -> str:
        """The module's own, cleaned."""
        return ast.get_docstring(self.tree) or ""

    def definitions(self) -> dict[str, Definition]:
        """Public functions and classes of the file, in its order."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return {node.name: node for node in self.tree.body if isinstance(node, kinds) and not node.name.startswith("_")}

    def head(self, node: Definition) -> str:
        """`def name(…) -> …` or `class Name(…)`, as it is written."""
        lines = self.text.splitlines(keepends=True)
        start = sum(len(line) for line in lines[: node.lineno - 1])
        first = node.body[0]
        end = sum(len(line) for line in lines[: first.lineno - 1])
        end += len(lines[first.lineno - 1].encode()[: first.col_offset].decode())
        marks = [part.id for part in node.decorator_list if isinstance(part, ast.Name)]
        written = inspect.cleandoc(self.text[start:end].strip().removesuffix(":"))
        return "".join(f"@{mark}\n" for mark in marks if mark in SHOWN) + written

    def resolve(self, name: str) -> str:
        """What the alias `name` stands for in this file; any other text as it is."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
                return " ".join((ast.get_source_segment(self.text, node.value) or "").split())
        return name

    def fields(self, node: ast.ClassDef) -> list[tuple[str, str, str]]:
        """(name, `name: type = default` as written, docstring) of a class's public annotated fields."""
        found = []
        for position, part in enumerate(node.body):
            if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
                continue
            if part.target.id.startswith("_"):
                continue
            written = " ".join((ast.get_source_segment(self.text, part) or "").split())
            found.append((part.target.id, written, _string(node.body[position + 1 : position + 2])))
        return found

    def methods(self, node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Public methods that have a docstring; `__init__` where it has one."""
        functions = (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
        return [
            part
            for part in functions
            if ast.get_docstring(part) and (part.name == "__init__" or not part.name.startswith("_"))
        ]


@cache
def read(path: Path) -> Source:
    """Parse a file."""
    text = path.read_text(encoding="utf-8")
    return Source(path, text, ast.parse(text))


def markdown(docstring: str) -> str:
    """A Google-style docstring as Markdown: its sections become lists."""
    parts: list[str] = []
    section = False
    for line in docstring.splitlines():
        if found := SECTION.fullmatch(line.strip()):
            parts += ["", f"**{found[1]}**", ""]
            section = True
        elif section and line.strip() and not line.startswith(" "):
            parts += ["", line]
            section = False
        elif section and re.match(r" {4}\S", line):
            name, colon, rest = line.strip().partition(": ")
            parts.append(f"- `{name}`: {rest}" if colon and "`" not in name else f"- {line.strip()}")
        elif section and line.strip():
            parts.append(f"  {line.strip()}")
        else:
            parts.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip()


def _string(body: list[ast.stmt]) -> str:
    match body:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return " ".join(text.split())
    return ""
