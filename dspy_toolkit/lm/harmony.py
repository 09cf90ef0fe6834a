"""Harmony, the notation that gpt-oss writes in: messages in channels, each with a header.

    <|start|>assistant<|channel|>analysis<|message|>…<|end|>          reasoning
    <|start|>assistant<|channel|>final<|message|>…<|return|>          the answer
    <|start|>assistant<|channel|>commentary to=functions.NAME …<|message|>{…}<|call|>    a call

A prompt ends with `<|start|>assistant`, and the reply is the rest of the first header, or, where the channel is dictated, the
content. Of the notation (https://cookbook.openai.com/articles/openai-harmony) what a reply can hold is covered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")
"""Tokens of the notation; a model that has them all writes in it."""
ENDS = ("<|return|>", "<|call|>")
"""Of these, those that end a reply: the answer is whole, or a call is to be made."""
ASSISTANT = "<|start|>assistant"
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
END = "<|end|>"

_STOP = re.compile(r"<\|(?:end|call|return)\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_TO = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")


@dataclass(frozen=True)
class Said:
    """One message of a reply."""

    channel: str
    to: str | None
    """The function that it calls; None where it calls nothing."""
    content: str
    start: int
    """Where in the reply the content begins."""
    whole: bool
    """Whether it was ended, or only the reply was."""


def read_channels(reply: str, opening: str = "") -> list[Said]:
    """The messages of a reply, the last of which may be unfinished. A header that is not finished is left out.

    Text without any header is taken for the answer: a model that was trained on without the notation writes none.

    Args:
        opening: what the prompt ends with behind the assistant's name: nothing, ANALYSIS or FINAL.
    """
    text, at, said = opening + reply, 0, []
    if not opening and reply and "<|" not in reply and reply.lstrip()[:3] != "to="[: len(reply.lstrip())]:
        return [Said("final", None, reply, 0, True)]
    while at < len(text):
        header, mark, _ = text[at:].partition("<|message|>")
        if not mark:
            break
        begin = at + len(header) + len(mark)
        end = _STOP.search(text, begin)
        stop = end.start() if end else len(text)
        channel, to = _CHANNEL.search(header), _TO.search(header)
        # A stop token is not in the reply, so that a call that ends it looks unfinished.
        said.append(
            Said(
                channel[1] if channel else "final",
                to[1] if to else None,
                text[begin:stop],
                max(begin - len(opening), 0),
                True if to else end is not None,
            )
        )
        at = end.end() if end else len(text)
    return said
