"""The files for coding agents at the repository's root: `SKILL.md` and `llms.txt`, made from the commands, the tools and the pages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

from cyclopts import App

SKILL = """\
---
name: dspy-toolkit
description: Optimize a DSPy program on labelled rows, prove it on sealed rows, keep, compare, move and run the versions. Use it \
when a repository has a dspy-toolkit.toml or a .dspy-toolkit folder, or when a prompt or a DSPy program is to get better, with proof.
---

# Working with dspy-toolkit

A **project** is a program, a metric and a dataset: a TOML file, or a Python file that holds a `Project`. A **version** is a saved
program, `project@3`; the **champion**, `project@champion`, is the one that is live. The **gate** compares a candidate with the
champion on sealed rows, which nothing before has seen, and every look at them is counted.

## Rules

- Run `dspy-toolkit doctor` first where anything fails, and `dspy-toolkit projects validate PROJECT` before a run: each finding has
  its fix.
- Add `--json` to read an answer with a program. A command ends with 0; 1 after an error, which is one line on stderr and says what
  to do next; 2 when it was called wrongly.
- Never read, print or copy sealed rows, and do not run the gate again and again on the same ones: what was tuned on them is proved
  no more.
- Do not promote with `--force` unless a person has given you the reason to write down.
- A run spends LM calls. Say what it will cost first: `python -m flows.optimize_program --project PROJECT --dry-run`.
- Demonstrations are rows of the data, in clear: programs, bundles and pages are as private as the rows.

## The usual way

1. `dspy-toolkit projects new NAME --template classify`, then put in your own rows.
2. `dspy-toolkit projects validate NAME/project.toml`
3. `python -m flows.optimize_program --project NAME/project.toml --budget light`, in a clone of the toolkit.
4. `dspy-toolkit programs show NAME/project.toml`, which prints the messages that the model gets; `dspy-toolkit history`.
5. `dspy-toolkit predict NAME/project.toml --file inputs.jsonl`

## Commands

"""
LLMS = """\
# dspy-toolkit

> Bring a DSPy program, a dataset and a metric; get back a better program that has proved it on sealed data, on your own machine, on
> MLX or any model that LiteLLM reaches.

`SKILL.md` says how to work with it, in a page.

"""


def doors(root: Path) -> dict[str, str]:
    """File name at the root → its text."""
    return {
        "SKILL.md": f"{SKILL}{_commands_listed()}\n\n{_tools_listed()}\n",
        "llms.txt": f"{LLMS}{_pages_listed(root)}\n",
    }


def _commands_listed() -> str:
    from dspy_toolkit.cli import app

    lines = [f"- `{' '.join(['dspy-toolkit', *words])}`: {said}" for words, said in _commands(app, ())]
    return "\n".join(lines)


def _commands(app: App, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for name in sorted(app):
        if name.startswith("-"):
            continue
        inner = app[name]
        below = list(_commands(inner, (*words, name)))
        if not below or inner.default_command is not None:
            yield (*words, name), _first_sentence(inner.help)
        yield from below


def _tools_listed() -> str:
    from dspy_toolkit.agents import Jobs, make_server
    from dspy_toolkit.settings import Settings

    settings = Settings()
    server = make_server(settings, doctor=list, jobs=Jobs(settings, 1))
    lines = [f"- `{tool.name}`: {_first_sentence(tool.description or '')}" for tool in asyncio.run(server.list_tools())]
    head = (
        "## Tools\n\n`dspy-toolkit mcp` serves these by the Model Context Protocol; `optimize` and `optimization_status` only with "
        "`--allow-optimize`, within `--most-calls`.\n\n"
    )
    return head + "\n".join(lines)


def _pages_listed(root: Path) -> str:
    guides = [
        _listed(root, path)
        for path in [root / "README.md", *sorted(root.glob("docs/*.md")), *sorted(root.glob("docs/projects/*.md"))]
    ]
    reference = [_listed(root, path) for path in sorted(root.glob("docs/reference/*.md"))]
    return "\n".join(["## Guides", "", *guides, "", "## Reference", "", *reference])


def _listed(root: Path, path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    title = next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), path.stem)
    if path.stem.startswith("dspy_toolkit") and (head := re.search(r"```text\n(.*?)(\n\n|```)", text, re.S)):
        return f"- [{title}]({path.relative_to(root).as_posix()}): {_first_sentence(head[1])}"  # the docstring's first words
    body = re.sub(r"```.*?```|<!--.*?-->", "", text.partition(title)[2], flags=re.S)
    # The first paragraph of prose: no heading, table, list or block.
    prose = next((part for part in re.split(r"\n\s*\n", body) if re.match(r"\s*[A-Za-z`*\[(]", part)), "")
    return f"- [{title}]({path.relative_to(root).as_posix()}): {_first_sentence(prose)}".rstrip(": ")


def _first_sentence(text: str) -> str:
    flat = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(text.split())).replace("**", "")
    found = re.match(r"(.+?[.!?])(?=\s|$)", flat)
    return found[1] if found else flat
