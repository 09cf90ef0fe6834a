"""Whether the reflection model can write a usable instruction.

That is tried rather than assumed: small models repeat the old instruction, or answer the example instead of describing
the task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_toolkit.datasets import DatasetSpec, examples
from dspy_toolkit.errors import ToolkitError
from dspy_toolkit.optimizers.states import signature_of
from dspy_toolkit.project.signatures import fields_of

if TYPE_CHECKING:
    import dspy
    import pandas as pd

    from dspy_toolkit.lm.connection import Connection

SHORTEST_INSTRUCTION = 20
LONGEST_INSTRUCTION = 2_000
"""Characters; a longer one is rambling, not an instruction."""


def try_reflection(
    program: dspy.Module, rows: pd.DataFrame, spec: DatasetSpec, connection: Connection
) -> tuple[bool, str]:
    """Ask the reflection model for a better instruction; (whether it is usable, why or why not).

    Usable means: of sensible length, not the old one again, and about the task: it names an output or one of its
    values.

    Raises:
        ToolkitError: a transient error of the model.
    """
    import dspy
    from dspy.utils.exceptions import AdapterParseError, LMError

    from dspy_toolkit.optimizers.generators.callback import cause_of_type

    signature = signature_of(program.predictors()[0])
    old = signature.instructions
    cases = examples(rows, spec, fields_of(program))
    shown = f"{dict(cases[0].inputs())} -> {dict(cases[0].labels())}"
    ask = dspy.Predict("instruction: str, example: str -> better_instruction: str")
    try:
        with dspy.context(lm=connection.reflection.metered(), adapter=connection.adapter):
            answer = ask(instruction=old, example=shown).better_instruction
    except AdapterParseError:
        return False, "its reply could not be read"
    except (LMError, ToolkitError) as error:
        fault = cause_of_type(error, ToolkitError)
        if fault is not None and fault.retryable:
            raise fault from error
        return False, f"it could not answer: {str(fault or error).splitlines()[0]}"
    text = " ".join(str(answer or "").split())
    values = {str(getattr(value, "value", value)) for case in cases for value in dict(case.labels()).values()}
    words = {word.lower() for word in (*spec.outputs, *signature.output_fields, *values) if word}
    seen = repr(text[:120])
    if not SHORTEST_INSTRUCTION <= len(text) <= LONGEST_INSTRUCTION:
        return False, f"its instruction has {len(text)} characters: {seen}"
    if text.lower() == " ".join(old.split()).lower():
        return False, "it gave the old instruction back"
    if not any(word in text.lower() for word in words):
        return False, f"its instruction names neither an output nor an answer: {seen}"
    return True, f"it wrote {seen}"
