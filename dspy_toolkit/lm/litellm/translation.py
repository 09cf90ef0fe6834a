"""Between LiteLLM's words and the engine's: a call into requests, replies into a response, an error into an exception.

Understood, directly or inside `extra_body`: messages (text, tool calls and their results; images where who is asked reads them,
`reading_images`), max_tokens, temperature, top_p, top_k, min_p, the three penalties, logit_bias, n, stop, seed, timeout, logprobs
and top_logprobs, the formats and tools of `constraints`, thinking by `enable_thinking`, `chat_template_kwargs`, `thinking` or
`reasoning_effort`, a budget for it, and `label_scores`. Anything else is refused by name rather than dropped. `adapter` is the
hash of an adapter in the home, with which the model is to answer.

`label_scores={"prefix": …, "labels": […], "suffix": …}` has the labels scored in place of a reply (`protocol.LabelScores` says
what counts). Since nothing is drawn, temperature and what else says how to draw, which an LM sends with every call, do not
matter to it, and neither do logprobs and top_logprobs: the choice's logprobs are always there. Their only entry is the
likeliest label, and its top_logprobs are all labels, in the order asked, each with the number of its `tokens`.

A response carries, beside what OpenAI's has, `response._hidden_params["engine"]`: for each choice the seconds it waited
(`queue_seconds`), was read (`prefill_seconds`), was written (`decode_seconds`) and took in all (`seconds`), and the tokens that
came from a shared prefix (`reused_tokens`) and from the grammar (`forced_tokens`). A streamed reply has them on its last piece; in
the response that `litellm.stream_chunk_builder` makes of the pieces they are in `_hidden_params["provider_specific_fields"]["engine"]`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.litellm.constraints import take_grammar, take_tools
from dspy_toolkit.lm.protocol import GenerationRequest, Image, Reply, make_request
from dspy_toolkit.lm.vision.images import take_image

if TYPE_CHECKING:
    from litellm.types.utils import ChoiceLogprobs, GenericStreamingChunk, ModelResponse, ModelResponseStream

    Piece: TypeAlias = GenericStreamingChunk | ModelResponseStream
    """A piece of a streamed reply, in either of the forms that LiteLLM takes."""

PROVIDER = "mlx"
IGNORED = {"stream", "stream_options", "user", "num_retries", "max_retries", "metadata", "store", "safety_identifier"}
"""Of LiteLLM's own; they do not change the reply."""
DEFAULT_TIMEOUT = 600
"""What LiteLLM passes when nobody said anything: then the engine's own limit counts."""
MAX_CHOICES = 64


SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
NO_THINKING = ("none", "disable")
"""Values of reasoning_effort that mean no reasoning at all."""
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""The other values, as models know them that know any."""
IMAGE_ADVICE = (
    "For dspy.Image, name a vision model, which mlx-vlm runs here (lm.model=mlx/NAME; `pip install 'dspy-toolkit[vision]'` "
    "brings it), or one that a server runs (lm.model=openai/NAME with its api_base)."
)

_reads: ContextVar[bool] = ContextVar("_reads", default=False)
"""Whether who is asked reads images."""


@contextmanager
def reading_images() -> Iterator[None]:
    """Within the block, `translate` takes images: who is asked reads them. Elsewhere it refuses them."""
    token = _reads.set(True)
    try:
        yield
    finally:
        _reads.reset(token)


def translate(messages: list[Any], optional: dict[str, Any], timeout: Any) -> list[GenerationRequest]:
    """LiteLLM's call as requests, one a choice; they differ in their seed only, and share their prompt.

    Raises:
        RequestRefused: a field that cannot be understood, an image outside of `reading_images`, or n outside 1 to MAX_CHOICES.
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
    for name in SAMPLING:
        if name in optional:
            fields[name] = optional.pop(name)
    if fields.get("top_k") == -1:  # vLLM's way of saying all
        fields["top_k"] = 0
    fields["logit_bias"] = _logit_bias(optional.pop("logit_bias", None))
    if (scores := optional.pop("label_scores", None)) is not None:
        fields = {"label_scores": _label_scores(scores, n)}
        _logprobs(optional)
    stop = optional.pop("stop", ())
    fields["stop"] = (stop,) if isinstance(stop, str) else stop
    fields["logprobs"] = _logprobs(optional)
    fields |= _thinking(optional)
    fields["adapter"] = optional.pop("adapter", None)
    fields["tools"], calls = take_tools(optional)
    fields["grammar"] = take_grammar(optional)
    if fields["tools"] and fields["grammar"]:
        raise RequestRefused("The call offers tools and asks for a format; a reply that has the format calls nothing.")
    fields["grammar"] = calls or fields["grammar"]
    if isinstance(timeout, int | float) and timeout > 0 and timeout != DEFAULT_TIMEOUT:
        fields["deadline_seconds"] = timeout
    if optional:
        raise RequestRefused(f"The mlx provider does not understand {', '.join(sorted(optional))}. Leave it out.")
    fields["messages"] = [turn(message, images=_reads.get()) for message in messages]
    first = make_request(**fields)
    if first.temperature == 0 or first.seed is None:
        return [first] * n  # greedy ones are alike; without a seed, each draws one of its own
    return [first.model_copy(update={"seed": first.seed + index}) for index in range(n)]


def _label_scores(given: Any, n: int) -> dict[str, Any]:
    if not isinstance(given, dict) or not isinstance(given.get("labels"), list | tuple):
        raise RequestRefused(
            f"label_scores is {str(given)[:200]}; give {{'labels': [texts]}}, and 'prefix' and 'suffix' where the reply has them."
        )
    if n != 1:
        raise RequestRefused(f"n is {n}; with label_scores it must be 1, since all labels are in one choice.")
    return given


def _logit_bias(given: Any) -> list[tuple[int, float]]:
    """(token, bias) of OpenAI's mapping, whose keys are numbers of tokens as texts."""
    try:
        return [(int(token), float(bias)) for token, bias in (given or {}).items()]
    except (AttributeError, TypeError, ValueError):
        raise RequestRefused(
            f"logit_bias is {str(given)[:200]}; give a mapping of this model's tokens, by number, to -100 to 100."
        ) from None


def _logprobs(optional: dict[str, Any]) -> int | None:
    wanted, top = optional.pop("logprobs", False), optional.pop("top_logprobs", None)
    if not isinstance(wanted, bool):
        raise RequestRefused(f"logprobs is {wanted!r}; give True, and the number as top_logprobs.")
    if not wanted and top:
        raise RequestRefused(f"top_logprobs is {top!r}, and logprobs is not True. Give both.")
    return (top or 0) if wanted else None


def _thinking(optional: dict[str, Any]) -> dict[str, Any]:
    """Whether to reason first, however it was said, how much, and how long; by the names of a request.

    Raises:
        RequestRefused: what nobody understands, or two that do not agree.
    """
    fields: dict[str, Any] = {}
    if (budget := optional.pop("thinking_budget", None)) is not None:
        fields["thinking_budget"] = budget
    template = optional.pop("chat_template_kwargs", None) or {}
    said: dict[str, Any] = {}
    for name, value in (template if isinstance(template, dict) else {"": template}).items():
        if name not in ("enable_thinking", "thinking"):
            raise RequestRefused(f"chat_template_kwargs is {template!r}; only enable_thinking is understood in it.")
        said[f"chat_template_kwargs.{name}"] = value
    if "enable_thinking" in optional:
        said["enable_thinking"] = optional.pop("enable_thinking")
    if (thinking := optional.pop("thinking", None)) is not None:
        known = isinstance(thinking, dict) and thinking.keys() <= {"type", "budget_tokens"}
        kind = thinking.get("type") if known else None
        if known and thinking.get("budget_tokens") is not None:
            fields["thinking_budget"] = thinking["budget_tokens"]
        said["thinking"] = {"enabled": True, "disabled": False}.get(str(kind), thinking)
    if (effort := optional.pop("reasoning_effort", None)) not in (None, "default"):
        # Most templates know reasoning or none; those of gpt-oss have words for how much.
        said["reasoning_effort"] = effort in EFFORTS if effort in (*EFFORTS, *NO_THINKING) else effort
        fields["reasoning_effort"] = EFFORTS.get(str(effort))
    if any(not isinstance(value, bool) for value in said.values()) or len(set(said.values())) > 1:
        raise RequestRefused(f"Whether to think is said as {said}; give enable_thinking True or False.")
    return fields | {"thinking": next(iter(said.values()), None)}


def turn(message: Any, *, images: bool = True) -> dict[str, Any]:
    """A message as `Message` takes it. Missing content is left for `Message` to refuse, except beside tool calls.

    Args:
        images: whether it may have some.

    Raises:
        RequestRefused: content that is neither text nor such an image, or a tool call without name or arguments.
    """
    calls, content = message.get("tool_calls") or (), message.get("content")
    text, pictures = _content(content if content is not None or not calls else "", images)
    found = {"role": message.get("role"), "content": text}
    if pictures:
        found["images"] = pictures
    if calls:
        found["tool_calls"] = [_call(call) for call in calls]
    for name in ("tool_call_id", "name") if found["role"] == "tool" else ():
        if message.get(name) is not None:
            found[name] = message.get(name)
    return found


def _call(call: Any) -> dict[str, Any]:
    call = call if isinstance(call, dict) else call.model_dump()
    function = call.get("function") or {}
    arguments = function.get("arguments") or "{}"
    arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    try:
        if isinstance(json.loads(arguments), dict) and isinstance(function.get("name"), str):
            return {"id": call.get("id") or "", "name": function["name"], "arguments": arguments}
    except ValueError:
        pass
    raise RequestRefused(
        f"A message calls a tool as {str(call)[:200]}; give a name, and arguments as JSON of an object."
    )


def _content(content: Any, images: bool) -> tuple[Any, list[Image]]:
    """The text of a message, and the images in it; OpenAI's list of parts is joined."""
    if not isinstance(content, list):
        return content, []
    text, found = "", list[Image]()
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "text":
            text += str(part.get("text", ""))
        elif not images:
            raise RequestRefused(
                f"A message has content of the type {kind}; this engine reads text only. {IMAGE_ADVICE}"
            )
        elif kind != "image_url":
            raise RequestRefused(f"A message has content of the type {kind}; this engine reads text and images only.")
        else:
            given = part.get("image_url")
            found.append(take_image(given.get("url") if isinstance(given, dict) else given, len(text)))
    return text, found


def sign(response: Any, name: str) -> Any:
    """Let a response say who answered, in the field that OpenAI has for what the model runs on, and in `model`."""
    # LiteLLM puts the name that was asked for into the `model` of a streamed response; this other field it leaves alone.
    response.model = response.system_fingerprint = name
    return response


def fill(response: ModelResponse, model: str, replies: list[Reply]) -> ModelResponse:
    """Write the replies, one a choice, their usage and their timings into LiteLLM's `response`."""
    from litellm.types.utils import Choices, Usage
    from litellm.types.utils import Message as LiteLLMMessage

    response.created = int(time.time())
    choices = []
    for index, reply in enumerate(replies):
        said: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.tool_calls:
            said |= {"tool_calls": _tool_calls(reply), "content": reply.text or None}
        if reply.reasoning is not None:
            said["reasoning_content"] = reply.reasoning
        choice: dict[str, Any] = {
            "index": index,
            "finish_reason": reply.finish_reason,
            "message": LiteLLMMessage(**said),
        }
        if (logprobs := _choice_logprobs(reply)) is not None:
            choice["logprobs"] = logprobs
        choices.append(Choices(**choice))
    response.choices = choices  # pyright: ignore[reportAttributeAccessIssue]
    response.usage = Usage(**_usage(replies))  # pyright: ignore[reportAttributeAccessIssue]
    # Written into the dictionary that LiteLLM adds its own to: a new one would be replaced.
    response._hidden_params["engine"] = [reply.model_dump(include=TIMINGS) for reply in replies]
    return sign(response, model)


TIMINGS = {"queue_seconds", "prefill_seconds", "decode_seconds", "seconds", "reused_tokens", "forced_tokens"}


def _usage(replies: list[Reply]) -> dict[str, Any]:
    """Of choices that share one prompt; `cached_tokens` are those that came from a prefix computed before."""
    prompt, completion = replies[0].prompt_tokens, sum(reply.completion_tokens for reply in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": replies[0].reused_tokens},
    }


def _tool_calls(reply: Reply) -> list[dict[str, Any]]:
    return [
        {"index": n, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for n, call in enumerate(reply.tool_calls)
    ]


def _choice_logprobs(reply: Reply) -> ChoiceLogprobs | None:
    """The log-probabilities of a reply's tokens or, in the place of one token, of its labels; None without any."""
    from litellm.types.utils import ChatCompletionTokenLogprob, ChoiceLogprobs, TopLogprob

    def spelled(token: str, logprob: float) -> dict[str, Any]:
        # Of a token that is half a character, the bytes are not known.
        return {"token": token, "logprob": logprob, "bytes": None if "\ufffd" in token else list(token.encode())}

    if (labels := reply.label_logprobs) is not None:
        best = max(labels, key=lambda scored: scored.logprob)
        top = [TopLogprob(**{**spelled(each.label, each.logprob), "tokens": each.tokens}) for each in labels]
        content = [ChatCompletionTokenLogprob(**spelled(best.label, best.logprob), top_logprobs=top)]
        return ChoiceLogprobs(content=content)
    if reply.logprobs is None:
        return None
    return ChoiceLogprobs(
        content=[
            ChatCompletionTokenLogprob(
                **spelled(each.token, each.logprob), top_logprobs=[TopLogprob(**spelled(*pair)) for pair in each.top]
            )
            for each in reply.logprobs
        ]
    )


def chunk(text: str, *, last: bool = False, reason: str = "", usage: Any = None) -> GenericStreamingChunk:
    """One piece of a streamed reply, as LiteLLM takes it."""
    return {"text": text, "is_finished": last, "finish_reason": reason, "index": 0, "tool_use": None, "usage": usage}


def last_chunks(reply: Reply) -> Iterator[Piece]:
    """The end of a streamed reply: what is not text (reasoning, tool calls, log-probabilities) whole, then usage and timings."""
    from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices

    extra: dict[str, Any] = {}
    if reply.reasoning is not None:
        extra["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        extra["tool_calls"] = _tool_calls(reply)
    logprobs = _choice_logprobs(reply)
    if extra or logprobs is not None:
        choice = StreamingChoices(index=0, delta=Delta(role="assistant", content=None, **extra), logprobs=logprobs)
        yield ModelResponseStream(choices=[choice])
    last: Any = dict(chunk("", last=True, reason=reply.finish_reason, usage=_usage([reply])))
    # Of what a piece hides, LiteLLM carries these fields, and no others, into the response that it makes of the pieces.
    last["_hidden_params"] = {"provider_specific_fields": {"engine": [reply.model_dump(include=TIMINGS)]}}
    yield last


def signed(piece: GenericStreamingChunk, name: str) -> GenericStreamingChunk:
    """A piece that says who answers, in what LiteLLM copies to the chunk and from the first chunk to the whole response."""
    # A piece without text is one that LiteLLM holds back; anything more in it makes it look for what is there, and fail.
    return {**piece, "provider_specific_fields": {"system_fingerprint": name}} if piece["text"] else piece
