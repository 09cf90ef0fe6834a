"""Formats whose fields stand between fixed texts: what a reply of them must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import dspy

from dspy_toolkit.lm.grammar import MAX_CHARACTERS, checked_grammar, is_text, max_length


class Mark(NamedTuple):
    """Where one field of a reply stands."""

    name: str
    before: str
    """What stands before its value; of every field but the first, what ended the one before."""
    after: str
    """What ends its value; empty: the end of the reply."""


def marked_grammar(
    signature: type[dspy.Signature],
    marks: list[Mark],
    text: Callable[[int], str],
    rule: Callable[[Any], str | None],
) -> str | None:
    """The grammar of a whole reply; None where none can describe an output.

    Args:
        text: the pattern of a free text of 1 to so many characters.
        rule: the right side of the rule for a type that is no free text; None where there is none.
    """
    if not marks:
        return None
    start, rules = [json.dumps(marks[0].before)] if marks[0].before else [], []
    for number, (mark, field) in enumerate(zip(marks, signature.output_fields.values(), strict=True)):
        start.append(f"field_{number}")
        end = json.dumps(mark.after) if mark.after else ""
        if is_text(field.annotation):
            # What follows is part of the text's rule: text ends where that first appears, or at its greatest length.
            suffix = f"[suffix={end}]" if end else ""
            rules.append(f"field_{number}{suffix}: {text(max_length(field) or MAX_CHARACTERS)}")
            continue
        if (body := rule(field.annotation)) is None:
            return None
        start += [end] if end else []
        rules.append(f"field_{number}: {body}")
    return checked_grammar("\n".join([f"start: {' '.join(start)}", *rules]), [mark.name for mark in marks])
