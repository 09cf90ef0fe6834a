"""Between LiteLLM's words and the engine's: a call into requests, replies into a response, an error into an exception.

Understands messages, max_tokens, temperature, top_p, n, stop, seed, timeout, `response_format` (json_object, json_schema, a
pydantic model) and `guided_grammar`. Anything else is refused by name rather than dropped.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dspy_toolkit.errors import (
    DeadlineExceeded,
    EngineBusy,
    ModelError,
    RequestRefused,
    ToolkitError,
)
from dspy_toolkit.lm.exchange import GenerationRequest, Reply, make_request

if TYPE_CHECKING:
    from litellm.types.utils import GenericStreamingChunk, ModelResponse

PROVIDER = "mlx"
IGNORED = {"stream", "stream_options", "user", "num_retries", "max_retries", "metadata"}
"""Of LiteLLM's own; they do not change the reply."""
DEFAULT_TIMEOUT = 600
"""What LiteLLM passes when nobody said anything: then the engine's own limit counts."""
MAX_CHOICES = 64


def translate(messages: list[Any], optional: dict[str, Any], timeout: Any) -> list[GenerationRequest]:
    """LiteLLM's call as requests, one a choice.

    Raises:
        RequestRefused: a field that cannot be understood, or n outside 1 to MAX_CHOICES.
    """
    extra = optional.get("extra_body")  # where clients of OpenAI's put what its interface does not name
    optional = {**optional, **extra, "extra_body": None} if isinstance(extra, dict) else optional
    optional = {key: value for key, value in optional.items() if value is not None and key not in IGNORED}
    n = optional.pop("n", 1)
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_CHOICES:
        raise RequestRefused(f"n is {n!r}; give a number from 1 to {MAX_CHOICES}.")
    fields: dict[str, Any] = {}
    for theirs, ours in (("max_tokens", "max_tokens"), ("max_completion_tokens", "max_tokens")):
        if theirs in optional:
            fields[ours] = optional.pop(theirs)
    for name in ("temperature", "top_p", "seed"):
        if name in optional:
            fields[name] = optional.pop(name)
    stop = optional.pop("stop", ())
    fields["stop"] = (stop,) if isinstance(stop, str) else stop
    fields["grammar"] = _grammar(optional.pop("guided_grammar", None), optional.pop("response_format", None))
    if isinstance(timeout, int | float) and timeout > 0 and timeout != DEFAULT_TIMEOUT:
        fields["deadline_seconds"] = timeout
    if optional:
        raise RequestRefused(f"The mlx provider does not understand {', '.join(sorted(optional))}. Leave it out.")
    fields["messages"] = [turn(message) for message in messages]
    first = make_request(**fields)
    if n == 1:
        return [first]
    if first.temperature == 0:
        return [first] * n
    if first.seed is None:
        return [first] * n  # each draws a seed of its own
    return [first.model_copy(update={"seed": first.seed + index}) for index in range(n)]


def _grammar(grammar: str | None, response_format: Any) -> str | None:
    if response_format is None or grammar is not None:
        return grammar
    from dspy_toolkit.lm.grammar import any_object_grammar, json_schema_grammar  # imports DSPy

    if isinstance(response_format, type):
        return json_schema_grammar(response_format.model_json_schema())  # a pydantic model, as DSPy's JSONAdapter sends
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return any_object_grammar()
    if kind == "json_schema" and isinstance(schema := response_format.get("json_schema", {}).get("schema"), dict):
        return json_schema_grammar(schema)
    raise RequestRefused(
        f"response_format is {response_format!r}; give type text, json_object or json_schema with a schema."
    )


def turn(message: Any) -> dict[str, Any]:
    """A message's role and text. Missing content is left for `Message` to refuse."""
    return {"role": message.get("role"), "content": _text(message.get("content"))}


def _text(content: Any) -> Any:
    """The text of a message; OpenAI's list of text parts is joined, and anything else is left for the check to refuse."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def sign(response: Any, name: str) -> ModelResponse:
    """Let a response say who answered, in the field that OpenAI has for what the model runs on, and in `model`."""
    # LiteLLM puts the name that was asked for into the `model` of a streamed response; this other field it leaves alone.
    response.model = response.system_fingerprint = name
    return response


def fill(response: ModelResponse, model: str, replies: list[Reply]) -> ModelResponse:
    """Write the replies, one a choice, and their usage into LiteLLM's `response`."""
    from litellm.types.utils import Choices, Usage
    from litellm.types.utils import Message as LiteLLMMessage

    response.created = int(time.time())
    response.choices = [  # pyright: ignore[reportAttributeAccessIssue]
        Choices(
            index=index, finish_reason=reply.finish_reason, message=LiteLLMMessage(role="assistant", content=reply.text)
        )
        for index, reply in enumerate(replies)
    ]
    prompt, completion = replies[0].prompt_tokens, sum(reply.completion_tokens for reply in replies)
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
    response.usage = usage  # pyright: ignore[reportAttributeAccessIssue]
    return sign(response, model)


def as_litellm(error: ToolkitError, model: str) -> Exception:
    """LiteLLM's exception of the same meaning, so that DSPy sorts it rightly into retryable and not."""
    from litellm import exceptions

    details: dict[str, Any] = {"message": str(error), "model": model, "llm_provider": PROVIDER}
    if isinstance(error, RequestRefused | ModelError):
        return exceptions.BadRequestError(**details)
    if isinstance(error, EngineBusy):
        return exceptions.RateLimitError(**details)
    if isinstance(error, DeadlineExceeded):
        return exceptions.Timeout(**details)
    return exceptions.InternalServerError(**details)


def chunk(text: str, *, last: bool = False, reason: str = "", usage: Any = None) -> GenericStreamingChunk:
    """One piece of a streamed reply, as LiteLLM takes it."""
    return {"text": text, "is_finished": last, "finish_reason": reason, "index": 0, "tool_use": None, "usage": usage}


def signed(piece: GenericStreamingChunk, name: str) -> GenericStreamingChunk:
    """A piece that says who answers, in what LiteLLM copies to the chunk and from the first chunk to the whole response."""
    # A piece without text is one that LiteLLM holds back; anything more in it makes it look for what is there, and fail.
    return {**piece, "provider_specific_fields": {"system_fingerprint": name}} if piece["text"] else piece


def last_chunk(reply: Reply) -> GenericStreamingChunk:
    """The end of a streamed reply, with its usage."""
    usage = {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }
    return chunk("", last=True, reason=reply.finish_reason, usage=usage)
