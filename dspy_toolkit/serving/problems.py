"""What a client is told when it gets no answer.

Covered: the status of HTTP, a code for programs and a sentence for people, of what the toolkit, DSPy and a user's program
raise. What is the server's own trouble is said in general words: its paths, models and texts are in the log, under the
request's id. Not covered: what falls back on what (`fallback`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineFailed,
    LeaseTimeout,
    ModelError,
    PromptTooLong,
    RequestRefused,
)


class Problem(Exception):
    """A request ends without an answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: list[dict[str, Any]] | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Args:
        status: of HTTP.
        code: for programs; it does not change.
        message: for people.
        details: one entry a field that does not fit.
        retry_after: seconds until another try may succeed.
        headers: of the reply.
        """
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, message, details
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def body(self, request_id: str, fell_back: Sequence[str] = ()) -> dict[str, Any]:
        """The reply's JSON; `fell_back` says who was asked and did not answer."""
        said: dict[str, Any] = {"code": self.code, "message": self.message, "request_id": request_id}
        if self.details:
            said["details"] = self.details
        if fell_back:
            said["fell_back"] = list(fell_back)
        return {"error": said}


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


def problem_of(error: BaseException) -> Problem:
    """The problem that `error`, of a program or the models that it asked, is to a client."""
    from dspy.utils.exceptions import AdapterParseError

    from dspy_toolkit.lm import root_error

    if isinstance(error, Problem):
        return error
    if isinstance(error, TimeoutError):
        return Problem(504, "deadline_exceeded", "There was no answer in time. Try again, or allow more time.")
    known = root_error(error)
    if isinstance(known, PromptTooLong):
        return Problem(413, "prompt_too_long", "The inputs are too long for the model. Shorten them.")
    if isinstance(known, RequestRefused):
        return Problem(422, "request_refused", "The model cannot take these inputs.")
    if isinstance(known, EngineBusy):
        return Problem(429, "model_busy", "The model has no room now. Try again.", retry_after=1)
    if isinstance(known, DeadlineExceeded):
        return Problem(504, "deadline_exceeded", "The model was not done in time. Try again.")
    if isinstance(known, EngineFailed) and known.retryable:
        return Problem(503, "model_failed", "The model failed. Try again.", retry_after=1)
    if isinstance(known, ModelError | LeaseTimeout | EngineFailed):
        return Problem(503, "model_unavailable", "The model cannot be used now. Try again later.", retry_after=10)
    if isinstance(error, AdapterParseError) or isinstance(error.__cause__, AdapterParseError):
        return Problem(502, "unreadable_reply", "The model's reply does not hold the outputs.")
    return Problem(500, "program_failed", "The program failed. Its log says why.")


def in_words(error: BaseException) -> str:
    """What failed, for a log that holds no text of a request: the toolkit's own words, of anything else its kind alone, since
    DSPy's errors repeat the reply and a program's may repeat anything.
    """
    from dspy_toolkit.lm import root_error

    known = root_error(error)
    if known is None or isinstance(known, RequestRefused):
        return type(error).__name__
    return f"{type(known).__name__}: {str(known)[:500]}"


def is_of_the_model(error: BaseException) -> bool:
    """Whether another program on the same model would meet this as well."""
    return problem_of(error).code in ("model_failed", "model_unavailable", "model_busy")


def is_of_the_request(error: BaseException) -> bool:
    """Whether the request itself is at fault: nobody else would answer it either."""
    return problem_of(error).code in ("prompt_too_long", "request_refused")
