"""The names of the formats, and which one a predictor has."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

from dspy_toolkit.errors import ProgramError, nearest

FormatName = Literal["chat", "plain", "json", "xml"]
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)
CHAT: FormatName = "chat"


def format_of(predictor: Any) -> FormatName | None:
    """The format that a predictor asks for by its attribute `format`; None where it leaves the choice to the model.

    Raises:
        ProgramError: there is no such format.
    """
    name = getattr(predictor, "format", None)
    if name is None or callable(name):
        return None
    if name not in FORMAT_NAMES:
        raise ProgramError(
            f"A predictor asks for the format {name!r}, which is none of {', '.join(FORMAT_NAMES)}."
            f"{nearest(str(name), FORMAT_NAMES)} Correct its `format`."
        )
    return cast("FormatName", name)
