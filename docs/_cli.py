"""The page of the command line: the help of every command, as it prints at 88 columns."""

from __future__ import annotations

import io
from collections.abc import Iterator

from cyclopts import App
from rich.console import Console

WIDTH = 88


def cli_page() -> str:
    """Markdown: a section for each command, with the output of its `--help`."""
    from dspy_toolkit.cli import app

    parts = [
        "# Command line",
        "A command ends with exit code 0; 1 after an error, which is one line on stderr; 2 when it was called wrongly; "
        "130 after Ctrl-C.",
    ]
    for words in _commands(app, ()):
        parts.append(f"## `{' '.join(['dspy-toolkit', *words])}`\n\n```text\n{_help(app, words)}\n```")
    return "\n\n".join(parts)


def _commands(app: App, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield words
    for name in sorted(app):
        if not name.startswith("-"):
            yield from _commands(app[name], (*words, name))


def _help(app: App, words: tuple[str, ...]) -> str:
    out = io.StringIO()
    # Every property that the terminal would decide is given, so that the page is the same everywhere.
    console = Console(file=out, width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    try:
        app([*words, "--help"], console=console)
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"`{' '.join(words)} --help` ended with {ended.code}: {out.getvalue()}") from None
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())
