"""Formats: how the fields of a signature become messages, and a reply becomes fields again.

`plain` says the least: the instruction, the input, and nothing but the value as reply. `chat`, `json` and `xml` are DSPy's own, each
with a grammar that a reply must match. A predictor's attribute `format` names its own; it is part of a program's state.
Demonstrations are turns of the conversation in every format.
"""

from dspy_toolkit.lm.formats.names import CHAT, FORMAT_NAMES, FormatName, format_of

__all__ = ["CHAT", "FORMAT_NAMES", "FormatName", "format_of"]
