"""`chat`: DSPy's `ChatAdapter`. Every field stands under a header, and the system turn explains the headers."""

from __future__ import annotations

from typing import ClassVar

import dspy
from dspy.adapters.chat_adapter import ChatAdapter

from dspy_toolkit.lm.formats.base import Format
from dspy_toolkit.lm.formats.names import CHAT, FormatName
from dspy_toolkit.lm.grammar import signature_grammar


class ChatFormat(Format, ChatAdapter):
    """`ChatAdapter`'s format with its grammar."""

    name: ClassVar[FormatName] = CHAT

    @classmethod
    def grammar(cls, signature: type[dspy.Signature]) -> str | None:
        """See `Format`."""
        return signature_grammar(signature)

    @classmethod
    def reader(cls, signature: type[dspy.Signature]) -> None:
        """See `Format`."""
        return

    @classmethod
    def around(cls, signature: type[dspy.Signature], name: str) -> tuple[str, str]:
        """See `Format`."""
        names = [*signature.output_fields, "completed"]
        after = names[names.index(name) + 1]
        return f"[[ ## {name} ## ]]\n", f"\n\n[[ ## {after} ## ]]"
