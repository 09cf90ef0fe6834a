"""What every format has: a grammar beside DSPy's formatting and parsing, and a reader of replies that grow.

The reminder of the format at the end of each prompt is left out: the grammar makes it superfluous, and as it comes after the
input, no prefix could share it.
"""

from __future__ import annotations

import enum
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import dspy
from dspy.adapters.chat_adapter import ChatAdapter
from dspy.adapters.utils import format_field_value, serialize_for_json
from dspy.clients._deprecation import adapter_message_call

from dspy_toolkit.errors import ProgramError
from dspy_toolkit.lm.choices import choices_of
from dspy_toolkit.lm.formats.names import FormatName
from dspy_toolkit.lm.formats.reading import FieldReader
from dspy_toolkit.lm.label_rules import LabelRule

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

    def __init__(
        self,
        *,
        use_native_function_calling: bool = False,
        guided: bool = True,
        rules: Mapping[str, LabelRule] | None = None,
    ) -> None:
        """Args:
        guided: whether the model holds its replies to a grammar.
        rules: output → how its label is chosen; one that has none is decoded.
        """
        # A reply under the grammar fails to parse only when max_tokens cut it; asking again would be cut again.
        ChatAdapter.__init__(
            self, use_json_adapter_fallback=False, use_native_function_calling=use_native_function_calling
        )
        self._guided, self._free, self._rules = guided, False, rules or {}

    @classmethod
    @abstractmethod
    def grammar(cls, signature: type[dspy.Signature]) -> str | None:
        """The grammar of a whole reply; None where none can describe an output."""

    @classmethod
    @abstractmethod
    def reader(cls, signature: type[dspy.Signature]) -> FieldReader | None:
        """Splits a growing reply into fields; None where the reply is in `chat` already."""

    @classmethod
    @abstractmethod
    def around(cls, signature: type[dspy.Signature], name: str) -> tuple[str, str]:
        """What stands in a reply right before the value of the output `name`, and right after it."""

    @classmethod
    def label(cls, text: str, value: Any) -> str:
        """A choice's text as a reply in this format has it."""
        return text

    def __call__(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        """As every adapter of DSPy; where a rule chooses the last output's label, its labels are scored."""
        if (choice := self._choice(signature)) is None:
            return super().__call__(lm, lm_kwargs, signature, demos, inputs)
        values: dict[str, Any] = {}
        if not choice.alone:
            (values, *_) = super().__call__(lm, dict(lm_kwargs), signature, demos, inputs)
        messages = self.format(signature, demos, inputs)
        with adapter_message_call(lm, messages), dspy.context(send_stream=None):  # scores have no pieces to show
            outputs = lm(messages=messages, **self._asked(choice, lm_kwargs, signature, values))
        return [{**values, **choice.taken(outputs)}]

    async def acall(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: Any, inputs: Any) -> Any:
        """The same on an event loop."""
        if (choice := self._choice(signature)) is None:
            return await super().acall(lm, lm_kwargs, signature, demos, inputs)
        values: dict[str, Any] = {}
        if not choice.alone:
            (values, *_) = await super().acall(lm, dict(lm_kwargs), signature, demos, inputs)
        messages = self.format(signature, demos, inputs)
        with adapter_message_call(lm, messages), dspy.context(send_stream=None):
            outputs = await lm.acall(messages=messages, **self._asked(choice, lm_kwargs, signature, values))
        return [{**values, **choice.taken(outputs)}]

    def _choice(self, signature: type[dspy.Signature]) -> Choice | None:
        """The last output, where a rule chooses its label."""
        name = list(signature.output_fields)[-1]
        rule = self._rules.get(name)
        if rule is None or self._free:
            return None
        choices = choices_of(signature.output_fields[name].annotation) or ()
        if rule.labels != tuple(text for text, _ in choices):
            now = ", ".join(text for text, _ in choices) or "no choice"
            raise ProgramError(
                f"The program's weights for {name} are of the labels {', '.join(rule.labels)}, and its signature has {now}. "
                "Optimize it again."
            )
        return Choice(name, rule, dict(choices), alone=len(signature.output_fields) == 1)

    def _asked(
        self, choice: Choice, lm_kwargs: dict[str, Any], signature: type[dspy.Signature], values: dict[str, Any]
    ) -> dict[str, Any]:
        """The options of the call that scores the labels, after the outputs in `values`."""
        before, after = self.around(signature, choice.name)
        if values:
            reply = self.format_assistant_message_content(signature, values)
            before = reply[: reply.rindex(before) + len(before)]
        labels = [self.label(text, value) for text, value in choice.values.items()]
        kept = {name: lm_kwargs[name] for name in ("adapter", "rollout_id") if name in lm_kwargs}
        return {**kept, "label_scores": {"prefix": before, "labels": labels, "suffix": after}, "logprobs": True}

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

    def user_message_output_requirements(self, signature: type[dspy.Signature]) -> str:
        """Nothing where the grammar ensures the format."""
        if self._guided and not self._free and self.grammar(signature):
            return ""
        return super().user_message_output_requirements(signature)


class Choice(NamedTuple):
    """An output whose label a rule chooses."""

    name: str
    rule: LabelRule
    values: dict[str, Any]
    """Label's text → the value that it stands for."""
    alone: bool
    """Whether it is the only output."""

    def taken(self, outputs: Any) -> dict[str, Any]:
        """The value, the probability of each label, and that of the value: DSPy's output of the call that scored them."""
        (scored,) = outputs[0]["logprobs"].content
        chances = self.rule.probabilities([each.logprob for each in scored.top_logprobs])
        found = dict(zip(self.rule.labels, chances, strict=True))
        best = max(found, key=lambda text: found[text])
        return {self.name: self.values[best], "probabilities": found, "confidence": found[best]}


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
