"""What was asked of a served program, and what was said of its replies: the lines of `HOME/feedback/PROGRAM.jsonl`.

Serving writes them, one JSON object a line; this reads them. A last line without its end is being written, and waits.

Not covered: writing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from dspy_toolkit.errors import DatasetError

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings


class Reply(BaseModel):
    """One reply, and what was said of it. Keys that are not known here are passed over: another version may write more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: AwareDatetime
    request_id: str
    trace_id: str | None = None
    program: str
    version: int | None = None
    inputs: dict[str, Any]
    prediction: dict[str, Any] | None = None
    """None where there was no answer."""
    cached: bool = False
    seconds: float | None = None
    rating: float | None = None
    labels: dict[str, Any] | None = None
    """The right answers, by output."""


def replies(settings: Settings, program: str) -> list[Reply]:
    """All of a program's, in the order in which they came; of several lines about one request the last.

    Raises:
        DatasetError: a line is none of these.
    """
    file = settings.path("feedback", f"{program}.jsonl")
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    found: dict[str, Reply] = {}
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            reply = Reply.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, problem["loc"])) or "the line"
            raise DatasetError(
                f"{file}, line {number}: {where}: {problem['msg']}. Correct the line, or remove it."
            ) from None
        found[reply.request_id] = reply
    return list(found.values())
