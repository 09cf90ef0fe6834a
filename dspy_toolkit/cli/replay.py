"""`dspy-toolkit replay`: one row again, with everything that happens on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from dspy_toolkit.pipeline.replay import Replay


def replay(
    program: str,
    row: str,
    /,
    *,
    project: Annotated[str, Parameter(show_default=False)] = "",
    json: Json = False,
) -> None:
    """Run a program on one row of its project again: the messages, the raw reply, what was read of it, the score and why.

    The exit code is 1 where the row does not score 1. Sealed rows are not shown.

    Args:
        program: A project (its champion, else its own program), project@champion, project@3 or a folder.
        row: The row's number in the file, or the beginning of its hash, as the tables of runs have it.
        project: Where the program's project is, if it is neither installed nor where it was.
        json: Print JSON, for scripts.
    """
    from rich.console import Group

    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console
    from dspy_toolkit.pipeline.replay import replay
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    found = replay(settings, program, row, project)
    if json:
        print(json_text(found.model_dump(mode="json"), indent=2))
    else:
        console().print(Group(*_steps(found)), crop=False)
    if found.score is None or found.score < 1:
        raise SystemExit(1)


def _steps(found: Replay) -> Iterator[RenderableType]:
    from rich.text import Text

    from dspy_toolkit.cli.verbatim import Verbatim
    from dspy_toolkit.display.tables import properties

    def shown(values: dict[str, object]) -> RenderableType:
        return properties(
            (name, value if isinstance(value, str) else json_text(value)) for name, value in values.items()
        )

    def heading(text: str) -> Text:
        return Text(text, style="bold underline")

    yield f"{found.program} on row {found.number} ({found.row}, {found.split})"
    for number, call in enumerate(found.calls, start=1):
        yield ""
        yield heading(f"Call {number} of {len(found.calls)}, {call.seconds:.1f} s")
        for message in call.messages:
            yield Text(str(message["role"]), style="bold")
            yield Verbatim(str(message["content"]))
        for reply in call.replies:
            yield ""
            yield heading("The model's reply")
            yield Verbatim(reply)
        if call.fault:
            yield Text(call.fault, style="red")
    yield ""
    yield heading("What was read of it")
    yield shown(found.answer) if found.answer is not None else Text(found.fault, style="red")
    if found.expected:
        yield ""
        yield heading("What was expected")
        yield shown(found.expected)
    yield ""
    yield heading("Score")
    yield "none" if found.score is None else f"{found.score:.3f}"
    if found.feedback:
        yield Text(found.feedback)
