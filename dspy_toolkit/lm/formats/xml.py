"""`xml`: DSPy's `XMLAdapter`. Each field stands between its tags.

For texts, numbers and choices; a signature with a list or a model among its outputs has no grammar here.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar
from xml.sax.saxutils import unescape

import dspy
from dspy.adapters.xml_adapter import XMLAdapter

from dspy_toolkit.lm.choices import choices_of
from dspy_toolkit.lm.formats.base import Format
from dspy_toolkit.lm.formats.names import FormatName
from dspy_toolkit.lm.formats.reading import FieldReader, MarkedReader
from dspy_toolkit.lm.grammar import MAX_CHARACTERS, checked_grammar, is_text, max_length, value_rule

SIGN = "([^<&]|&amp;|&lt;|&gt;)"
"""One character of a text; two of them are written as entities."""
FIRST = "([^<&\\s]|&amp;|&lt;|&gt;)"


class XMLFormat(Format, XMLAdapter):
    """`XMLAdapter`'s format with its grammar."""

    name: ClassVar[FormatName] = "xml"

    @classmethod
    def grammar(cls, signature: type[dspy.Signature]) -> str | None:
        """See `Format`."""
        start, rules = [], []
        for number, ((_, before, after), field) in enumerate(
            zip(_marks(signature), signature.output_fields.values(), strict=True)
        ):
            start += [json.dumps(before), f"field_{number}"]
            if is_text(field.annotation):
                most = max((max_length(field) or MAX_CHARACTERS) - 1, 0)
                rules.append(f"field_{number}[suffix={json.dumps(after)}]: /{FIRST}{SIGN}{{0,{most}}}/")
                continue
            if (body := _scalar(field.annotation)) is None:
                return None
            start.append(json.dumps(after))
            rules.append(f"field_{number}: {body}")
        return (
            checked_grammar("\n".join([f"start: {' '.join(start)}", *rules]), list(signature.output_fields))
            if rules
            else None
        )

    @classmethod
    def reader(cls, signature: type[dspy.Signature]) -> FieldReader:
        """See `Format`."""
        marks = _marks(signature)
        # What ends a field stays before the next one.
        shown = [
            (name, f"{marks[n - 1][2] if n else ''}{before}", after) for n, (name, before, after) in enumerate(marks)
        ]
        return MarkedReader(shown, unescape)

    @classmethod
    def around(cls, signature: type[dspy.Signature], name: str) -> tuple[str, str]:
        """See `Format`."""
        return f"<{name}>\n", f"\n</{name}>"

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """As DSPy's, without the reminder where the grammar ensures the format."""
        reminder = self.user_message_output_requirements(signature) if main_request else None
        said = super().format_user_message_content(signature, inputs, prefix, "", main_request=False)
        return "\n\n".join(part for part in (said, reminder, suffix) if part).strip()


def _marks(signature: type[dspy.Signature]) -> list[tuple[str, str, str]]:
    """Of each output its name, what stands before its value, and after it."""
    names = list(signature.output_fields)
    return [(name, f"{chr(10) * 2 if number else ''}<{name}>\n", f"\n</{name}>") for number, name in enumerate(names)]


def _scalar(annotation: Any) -> str | None:
    """The rule of a number or a choice whose texts need no entities; None for any other type."""
    choices = choices_of(annotation)
    if choices is not None:
        return None if any(set("<&>") & set(text) for text, _ in choices) else value_rule(annotation)
    return value_rule(annotation) if annotation in (int, float) else None
