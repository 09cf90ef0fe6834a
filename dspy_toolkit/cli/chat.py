"""`dspy-toolkit chat`: talk with a program, or with the plain model, at a terminal or through a pipe.

At a terminal Ctrl-C stops a reply, and at the prompt the conversation, as Ctrl-D does. In a pipe each line is a turn, and replies
are all that is printed on stdout.

Not covered: what is said (`dspy_toolkit.conversation`).
"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.printable import json_text, printable

if TYPE_CHECKING:
    from dspy_toolkit.conversation import Conversation

ANEW, END = "/new", "/end"


def chat(
    program: Annotated[str, Parameter(show_default=False)] = "",
    /,
    *,
    system: Annotated[str, Parameter(show_default=False)] = "",
    project: Annotated[str, Parameter(show_default=False)] = "",
    json: Json = False,
) -> int:
    """Talk with a program, or with the plain model where none is named. Nothing of it is kept.

    A line is a turn. At a terminal `/new` begins anew, Ctrl-C stops a reply, and `/end` or Ctrl-D ends. In a pipe, a program of
    several inputs takes a JSON object a line. What was said before is given to the model, and to a program that has an input of
    type dspy.History.

    Args:
        program: A project (its champion, else its own program), project@champion, project@3 or a folder.
        system: What the plain model is told first, such as "Answer in one sentence."
        project: Where the program's project is, if it is neither installed nor where it was.
        json: Print each reply as a line of JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.conversation import open_conversation
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    conversation = open_conversation(settings, program, system=system, location=project)
    if sys.stdin is not None and sys.stdin.isatty():
        _at_terminal(conversation, json)
        return 0
    return _through_pipe(conversation, json)


def _at_terminal(conversation: Conversation, json: bool) -> None:
    import readline  # noqa: F401  (gives `input` a history and editing)

    print(printable(f"{conversation.title}. {ANEW} begins anew, {END} or Ctrl-D ends."), file=sys.stderr)
    for given in _typed(conversation):
        try:
            _turn(conversation, given, json)
        except KeyboardInterrupt:
            print("\n(stopped; as if it had not been said)", file=sys.stderr)
        except DatasetError as error:
            print(f"{error}", file=sys.stderr)


def _typed(conversation: Conversation) -> Iterator[dict[str, str]]:
    """What a person types, turn by turn, until the end."""
    while True:
        given: dict[str, str] = {}
        for name in conversation.asks:
            try:
                line = input(f"{name or 'you'}> ").strip()
            except EOFError:
                print()
                return
            if line == END:
                return
            if line == ANEW:
                conversation.forget()
            if line == ANEW or (not line and not name):
                break
            given[name] = line
        else:
            yield given


def _through_pipe(conversation: Conversation, json: bool) -> int:
    """Answer line by line; 1 when a line did not fit."""
    unfit = 0
    for line in sys.stdin or ():
        if not (text := line.strip()):
            continue
        try:
            _turn(conversation, _piped(text, conversation.asks), json)
        except DatasetError as error:
            unfit = 1
            print(f"Error: {error}", file=sys.stderr)
    return unfit


def _piped(line: str, asks: tuple[str, ...]) -> dict[str, str]:
    """A line of a pipe as a turn: the message, or a JSON object where a program has several inputs.

    Raises:
        DatasetError: it is no object with these names.
    """
    if asks == ("",):
        return {"": line}
    try:
        value = json_module.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict) or set(value) != set(asks):
        raise DatasetError(f"{line[:80]!r} is no JSON object of {', '.join(asks)}. Give one a line.")
    return {name: each if isinstance(each, str) else json_module.dumps(each) for name, each in value.items()}


def _turn(conversation: Conversation, given: dict[str, str], json: bool) -> None:
    dropped = conversation.dropped
    if json:
        print(json_text(conversation.say(given, lambda _: None)), flush=True)
    else:
        conversation.say(given, lambda piece: print(printable(piece), end="", flush=True))
        print(flush=True)
    if more := conversation.dropped - dropped:
        said = "The oldest turn is" if more == 1 else f"The {more} oldest turns are"
        print(f"({said} forgotten: the model has no room for more.)", file=sys.stderr)
