"""Running a program on a row, on many at once, on a whole file: `dspy-toolkit predict` as functions.

    predict                 input_types, fit, answer
    predict --file          read_file, answers
    predict --file --to     read_file, write_answers

answering   the answers themselves
writing     the answers in a file, kept as they come, going on where an earlier run was stopped

`dspy_toolkit.load_program` gives the program, `dspy_toolkit.connect` the models:

    loaded = load_program(settings, "router")
    connection = connect(settings.for_project(loaded.project.name))
    answer(loaded, {"request": "My invoice is wrong."}, connection)

None prints. Not covered: scoring the answers (`dspy_toolkit.evaluation`), answering requests (`dspy_toolkit.serving`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy_toolkit.predicting.answering import Unreadable, answer, answers, fit, input_types, read_file

if TYPE_CHECKING:
    from dspy_toolkit.predicting.writing import write_answers

__all__ = ["Unreadable", "answer", "answers", "fit", "input_types", "read_file", "write_answers"]


def __getattr__(name: str) -> Any:
    # The store's digests come with pydantic; the command imports this package for its help, which does not wait for that.
    if name == "write_answers":
        from dspy_toolkit.predicting.writing import write_answers

        return write_answers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
