"""`xml`: DSPy's `XMLAdapter`. Each field stands between its tags.

For texts, numbers and choices; a signature with a list or a model among its outputs has no grammar here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar
from xml.sax.saxutils import unescape

import dspy
from dspy.adapters.xml_adapter import XMLAdapter

from dspy_toolkit.lm.choices import choices_of
from dspy_toolkit.lm.formats.base import Format
from dspy_toolkit.lm.formats.marked import Mark, marked_grammar
from dspy_toolkit.lm.formats.names import FormatName
from dspy_toolkit.lm.formats.reading import FieldReader, MarkedReader
from dspy_toolkit.lm.grammar import value_rule

SIGN = "([^<&]|&amp;|&lt;|&gt;)"
"""One character of a text; two of them are written as entities."""
FIRST = "([^<&\\s]|&amp;|&lt;|&gt;)"


class XMLFormat(Format, XMLAdapter):
    """`XMLAdapter`'s format with its grammar."""

    name: ClassVar[FormatName] = "xml"

    @classmethod
    def grammar(cls, signature: type[dspy.Signature]) -> str | None:
        """See `Format`."""
        return marked_grammar(signature, _marks(signature), _text_pattern, _scalar)

    @classmethod
    def reader(cls, signature: type[dspy.Signature]) -> FieldReader:
        """See `Format`."""
        return MarkedReader(_marks(signature), unescape)

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


def _marks(signature: type[dspy.Signature]) -> list[Mark]:
    names = list(signature.output_fields)
    openings = [f"<{names[0]}>\n", *(f"\n</{last}>\n\n<{name}>\n" for last, name in pairwise(names))]
    return [Mark(*each) for each in zip(names, openings, [*openings[1:], f"\n</{names[-1]}>"], strict=True)]


def _text_pattern(characters: int) -> str:
    """Free text of 1 to `characters` characters without space at its start, which parsing strips."""
    return f"/{FIRST}{SIGN}{{0,{max(characters - 1, 0)}}}/"


def _scalar(annotation: Any) -> str | None:
    """The rule of a number or a choice whose texts need no entities; None for any other type."""
    choices = choices_of(annotation)
    if choices is not None:
        return None if any(set("<&>") & set(text) for text, _ in choices) else value_rule(annotation)
    return value_rule(annotation) if annotation in (int, float) else None
