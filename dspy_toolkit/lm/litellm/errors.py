"""Between the toolkit's errors and those of LiteLLM and DSPy, each way once.

    of the engine, for LiteLLM      `as_litellm`
    of a remote model, for us       `remote_fault`, by the status of HTTP that LiteLLM gives every failure:

    401, 402, 403, no key at all    ModelError
    404                             ModelNotFound
    429, 503, 529                   EngineBusy           (retried)
    408, 504                        DeadlineExceeded     (retried)
    other 5xx, refused, cut off,    EngineFailed         (retried)
    unreadable or empty
    other 4xx                       RequestRefused; PromptTooLong where LiteLLM says so

`root_error` finds the toolkit's own behind one that DSPy or LiteLLM wrapped around it, and `mask` takes keys out of what all of
them say: whoever logs a traceback logs each.
"""

from __future__ import annotations

import re
from typing import Any

from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineBusy,
    EngineFailed,
    ModelError,
    ModelNotFound,
    PromptTooLong,
    RequestRefused,
    ToolkitError,
    causes,
)
from dspy_toolkit.printable import printable, without_secrets

SEEN = 200
"""Characters of what the other side said."""
_NO_KEY = re.compile(r"missing\b.{0,40}\b(key|credentials)", re.IGNORECASE)
_NAMES = re.compile(r"^(\[[^\]]*\] )?(litellm\.)?(\w*(Error|Timeout): ?)+")
_NO_QUOTA = "insufficient_quota"


def root_error(error: BaseException | None) -> ToolkitError | None:
    """The toolkit's own error behind one that DSPy or LiteLLM raised, or None.

    Both wrap what a provider raises, more than once; Python links each to the one before as `__cause__` or `__context__`.
    """
    return next((cause for cause in causes(error) if isinstance(cause, ToolkitError)), None)


def as_litellm(error: ToolkitError, model: str, provider: str) -> Exception:
    """LiteLLM's exception of the same meaning, so that DSPy sorts it rightly into retryable and not."""
    from litellm import exceptions

    details: dict[str, Any] = {"message": str(error), "model": model, "llm_provider": provider}
    if isinstance(error, RequestRefused | ModelError):
        return exceptions.BadRequestError(**details)
    if isinstance(error, EngineBusy):
        return exceptions.RateLimitError(**details)
    if isinstance(error, DeadlineExceeded):
        return exceptions.Timeout(**details)
    return exceptions.InternalServerError(**details)


def remote_fault(error: Exception, model: str, where: str, options: dict[str, Any]) -> ToolkitError | None:
    """What the failure of a remote model is to the toolkit; None for a defect, which no status of HTTP stands for.

    Args:
        error: LiteLLM's or DSPy's.
        where: the setting that names the model, such as `[judge]`.
        options: the LM's, such as api_base and timeout.
    """
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    if not isinstance(status, int):
        return None
    said, address = _said(error), options.get("api_base")
    who = f"{model} at {address}" if address else model
    # LiteLLM gives a status of its own to what never had one.
    answered = any(type(cause).__name__ == "HTTPStatusError" for cause in causes(error))
    what = f"(HTTP {status}: {said})" if answered else f"({said})"
    if status in (401, 402, 403) or _NO_KEY.search(said) or _NO_QUOTA in (*_codes(error), said):
        own = "" if address else ", or its provider's environment variable"
        return ModelError(f"{who} does not let us in {what}. Set the api_key of {where}{own}.")
    if status == 404:
        return ModelNotFound(f"{who} is not there {what}. Correct {where}.")
    if status in (429, 503, 529):
        return EngineBusy(f"{who} has no room now {what}. Try again later, or lower optimize.threads.")
    if status in (408, 504):
        seconds = f"{options.get('timeout') or 600:g} s" if status == 408 else "its own limit"
        return DeadlineExceeded(f"{who} did not answer within {seconds} {what}. Raise the timeout of {where}.")
    if status < 500:
        too_long = any(type(cause).__name__ == "ContextWindowExceededError" for cause in causes(error))
        kind = PromptTooLong if too_long else RequestRefused
        return kind(f"{who} refuses the request {what}. Shorten the prompt, or correct {where}.")
    if refused := next((cause for cause in causes(error) if isinstance(cause, OSError)), None):
        return EngineFailed(f"{who} cannot be reached: {refused}. Start its server, or correct {where}.")
    return EngineFailed(f"{who} failed {what}. Try again later, or look into its server's log.")


def mask(error: BaseException) -> None:
    """Take hidden secrets out of what `error` and those behind it say: a server repeats the key that it refuses."""
    for cause in causes(error):
        cause.args = tuple(without_secrets(said) if isinstance(said, str) else said for said in cause.args)
        vars(cause).update({name: without_secrets(said) for name, said in vars(cause).items() if isinstance(said, str)})


def is_empty(response: Any) -> bool:
    """Whether a remote model said nothing at all, and not because the length or a filter cut it."""
    if not (choices := getattr(response, "choices", None)):
        return False
    return not any(
        (message := getattr(choice, "message", None)) is None
        or message.content
        or getattr(message, "tool_calls", None)
        or choice.finish_reason != "stop"
        for choice in choices
    )


def _said(error: Exception) -> str:
    """The other side's own words: the first line, without the names that LiteLLM puts before it."""
    text = _NAMES.sub("", str(getattr(error, "message", None) or error).strip().rpartition("Exception - ")[2])
    line = next(iter(text.splitlines()), "") or type(error).__name__
    return printable(line)[:SEEN]  # not half of a key either


def _codes(error: Exception) -> list[Any]:
    return [getattr(cause, name, None) for cause in causes(error) for name in ("provider_code", "code")]
