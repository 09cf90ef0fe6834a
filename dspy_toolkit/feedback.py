"""What users say of answers: `home/feedback/PROGRAM.jsonl`, a line a piece of feedback.

    from dspy_toolkit.feedback import read_feedback
    for entry in read_feedback(settings.path(), "router"):
        print(entry.at, entry.version, entry.rating, entry.labels)

A line is written when feedback comes in, with the request that it is about, so each line stands alone. Several may be about one
request: the last one counts. The file holds inputs in clear, as the home does.

Covered: the file's form, reading it, adding to it in place. Serving writes it, monitoring reads it. Not covered: who may add
(`serving.routes`), rows of it (`serving.dataset`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, Field, ValidationError

from dspy_toolkit.durable import add_line, is_json
from dspy_toolkit.errors import DatasetError
from dspy_toolkit.locks import held
from dspy_toolkit.store import Frozen


class Feedback(Frozen):
    """What somebody said of one answer."""

    at: AwareDatetime
    """When it was said."""
    request_id: str
    trace_id: str | None = None
    """The MLflow trace of the request, where it has one."""
    program: str
    """The name under which it was served."""
    version: int | None = None
    """What answered; None for a program that nothing has optimized."""
    inputs: dict[str, Any]
    prediction: dict[str, Any]
    cached: bool = False
    """Whether no model was asked."""
    seconds: float = Field(ge=0)
    """That the program took."""
    rating: float | None = Field(default=None, ge=0, le=1)
    """How good the answer was: 0 useless, 1 perfect."""
    labels: dict[str, Any] | None = None
    """Output → what it should have been."""


def feedback_file(home: Path, program: str) -> Path:
    """Where the feedback on a program is, whether or not there is some."""
    return home / "feedback" / f"{program}.jsonl"


def read_feedback(home: Path, program: str) -> list[Feedback]:
    """All feedback on a program, in the order in which it came; none where there is no file.

    Args:
        home: an absolute path, such as `settings.path()`.
        program: the name under which it was served.

    Raises:
        DatasetError: a line cannot be read; with its number.
    """
    path = feedback_file(home, program)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line or (number == len(lines) and not is_json(line)):  # a power cut left it, and nobody was told of it
            continue
        try:
            found.append(Feedback.model_validate_json(line))
        except ValidationError as error:
            why = error.errors(include_url=False, include_context=False)[0]["msg"]
            raise DatasetError(f"{path}, line {number} is no feedback: {why}. Remove the line.") from None
    return found


def add_feedback(home: Path, entry: Feedback) -> None:
    """Add a line, on disk when this returns.

    Raises:
        StoreError: it cannot be written; the file is then as it was.
    """
    path = feedback_file(home, entry.program)
    with held(Path(f"{path}.lock")):
        add_line(path, entry.model_dump_json().encode() + b"\n")


def latest(entries: list[Feedback]) -> list[Feedback]:
    """The last entry about each request, in the order of the requests' first entries; what the last leaves out holds."""
    kept: dict[str, Feedback] = {}
    for entry in entries:
        before = kept.get(entry.request_id)
        if before is not None:
            said = {
                "rating": before.rating if entry.rating is None else entry.rating,
                "labels": {**(before.labels or {}), **(entry.labels or {})} or None,
            }
            entry = entry.model_copy(update=said)
        kept[entry.request_id] = entry
    return list(kept.values())
