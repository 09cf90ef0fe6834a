"""What every format has: a grammar beside DSPy's formatting and parsing, and a reader of replies that grow.

The reminder of the format at the end of each prompt is left out: the grammar makes it superfluous, and as it comes after the
input, no prefix could share it.
"""

from __future__ import annotations

import enum
import json
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import dspy
from dspy.adapters.chat_adapter import ChatAdapter
from dspy.adapters.utils import format_field_value, serialize_for_json

from dspy_toolkit.lm.formats.names import FormatName
from dspy_toolkit.lm.formats.reading import FieldReader

if TYPE_CHECKING:
    Base = ChatAdapter
else:
    # DSPy writes `format` and `parse` into every class under its adapters: as one of these, this one would hide those of the
    # adapter that stands behind it.
    Base = object


class Format(Base):
    """Beside an adapter of DSPy's: a format of replies under a grammar. One object serves one call.

    Tools: DSPy describes them in the prompt, and the model calls them as text. With `use_native_function_calling`, a
    model with a tool parser is offered them in its own notation instead, and its reply has no grammar: it may call or
    answer.
    """

    name: ClassVar[FormatName]

    def __init__(self, *, use_native_function_calling: bool = False, guided: bool = True) -> None:
        """Args: guided: whether the model holds its replies to a grammar."""
        # A reply under the grammar fails to parse only when max_tokens cut it; asking again would be cut again.
        ChatAdapter.__init__(
            self, use_json_adapter_fallback=False, use_native_function_calling=use_native_function_calling
        )
        self._guided, self._free = guided, False

    @classmethod
    @abstractmethod
    def grammar(cls, signature: type[dspy.Signature]) -> str | None:
        """The grammar of a whole reply; None where none can describe an output."""

    @classmethod
    @abstractmethod
    def reader(cls, signature: type[dspy.Signature]) -> FieldReader | None:
        """Splits a growing reply into fields; None where the reply is in `chat` already."""

    def _call_preprocess(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, inputs: Any) -> Any:
        # DSPy takes out the fields that the model fills in natively; the grammar is for those that are left.
        asked = super()._call_preprocess(lm, lm_kwargs, signature, inputs)
        self._free = bool(lm_kwargs.get("tools"))
        if not self._guided:
            return asked
        if self._free:
            lm_kwargs["_skip_mcp_handler"] = True  # LiteLLM imports its proxy for every call with tools otherwise
        elif grammar := self.grammar(asked):
            lm_kwargs["guided_grammar"] = grammar
        return asked

    def user_message_output_requirements(self, signature: type[dspy.Signature]) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """No reminder where the grammar ensures the format."""
        if self._guided and not self._free and self.grammar(signature):
            return None
        return super().user_message_output_requirements(signature)


def written(annotation: Any, value: Any) -> str:
    """A value of an output as its grammar writes it, so that a demonstration shows what a reply must be.

    Args:
        annotation: the type of the output.
        value: one of that type, or what stands in its place (a note that it is missing).
    """
    if isinstance(annotation, enum.EnumMeta) and isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, str) else value.name
    plain = serialize_for_json(value)
    if isinstance(plain, dict | list):
        return compact(plain)
    return str(plain)


def compact(value: Any) -> str:
    """JSON without the spaces that a grammar's reply does not have."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def input_text(field: Any, value: Any) -> str:
    """A value of an input, as DSPy writes it."""
    return str(format_field_value(field_info=field, value=value))
