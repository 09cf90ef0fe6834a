"""`load.py` of an export: the few lines that load `program.json` with DSPy alone, and what they cannot hold.

A program that is one `Predict` or `ChainOfThought` is made whole, as `program`. Of a module of the project's own, whose code stays
there, each predictor is made, as an entry of `predictors`. A signature is written out where all of its types mean the same to
whoever reads it: those of Python and typing, and dates. One with another type, such as a pydantic model, is not written.

Not covered: levers, which DSPy does not know (`exports`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import dspy

    from dspy_toolkit.registry.programs import LoadedProgram

_DATES: dict[str, type] = {"date": date, "datetime": datetime}
_TYPING = ("Any", "Literal", "Optional", "Union")
_PLAIN_TYPE = re.compile(
    rf"(?:str|int|float|bool|None|list|dict|tuple|{'|'.join((*_TYPING, *_DATES))}"
    r"|[\[\], |]|'[^'\\]*'|\"[^\"\\]*\"|-?\d+)+"
)


class LoadingCode(NamedTuple):
    """What `loading_code` wrote."""

    text: str
    left_out: tuple[str, ...]
    """What it cannot hold, in words."""


def loading_code(loaded: LoadedProgram, reference: str) -> LoadingCode:
    """The lines that load a program's state, in `program.json` beside them.

    Args:
        loaded: the program.
        reference: what it was called.
    """
    import dspy

    program, kind = loaded.program, type(loaded.program)
    head = f'"""{loaded.project.name}, exported from {reference}: loads'
    alone = isinstance(program, dspy.Predict) or kind is dspy.ChainOfThought
    left_out = [] if kind in (dspy.Predict, dspy.ChainOfThought) else [f"the code of {kind.__name__}"]
    written: dict[str, str] = {}
    for name, predictor in program.named_predictors():
        signature: Any = predictor.signature
        if kind is dspy.ChainOfThought:
            signature = signature.delete("reasoning")
        if strange := list(_strange(signature)):
            left_out += strange
        else:
            written[name] = _text(signature)
        left_out += [f"the constraints of {field}" for field, about in signature.fields.items() if about.metadata]
    if alone and written:
        (signature,) = written.values()
        module = "Predict" if isinstance(program, dspy.Predict) else "ChainOfThought"
        text = (
            f'{head} program.json with DSPy alone."""\n\nfrom pathlib import Path\n\n{_imports(written)}\n'
            f"program = dspy.{module}({signature!r})\n"
            'program.load(str(Path(__file__).with_name("program.json")))\n\n'
            'if __name__ == "__main__":\n'
            "    print(program)\n"
        )
    else:
        text = _of_own_code(head, written, left_out)
    return LoadingCode(text, tuple(left_out))


def _of_own_code(head: str, written: dict[str, str], left_out: list[str]) -> str:
    head += ' what DSPy alone can of program.json."""\n\n'
    said = (
        f"# Not here: {'; '.join(left_out)}.\n"
        "# To have the program whole, make it with the code of its project, and program.load(str(STATE)).\n"
        'STATE = Path(__file__).with_name("program.json")\n'
    )
    if not written:
        return f"{head}from pathlib import Path\n\n{said}"
    made = "".join(f"    {name!r}: dspy.Predict({signature!r}),\n" for name, signature in written.items())
    return (
        f"{head}import json\nfrom pathlib import Path\n\n{_imports(written)}\n{said}"
        f"predictors = {{\n{made}}}\n"
        'for name, state in json.loads(STATE.read_text(encoding="utf-8")).items():\n'
        "    if name in predictors:\n"
        "        predictors[name].load_state(state)\n"
    )


def _imports(written: dict[str, str]) -> str:
    """Of DSPy, and of what the signatures name: DSPy looks names up in the module that writes them."""
    texts = " ".join(written.values())
    lines = ["import dspy"]
    for module, names in (("datetime", _DATES), ("typing", _TYPING)):
        if used := [name for name in names if re.search(rf"\b{name}\b", texts)]:
            lines.append(f"from {module} import {', '.join(used)}  # noqa: F401")
    return "\n".join(lines) + "\n"


def _strange(signature: type[dspy.Signature]) -> Iterator[str]:
    """The types that cannot be written out."""
    for name, field in signature.fields.items():
        if not _is_plain(field.annotation):
            called = re.sub(r"\w+\.", "", _type_text(field.annotation))  # without the module
            yield f"the type {called} of {name}, and so its predictor"


def _is_plain(annotation: Any) -> bool:
    """Whether DSPy reads the type out of its text."""
    import dspy

    text = _type_text(annotation)
    if not _PLAIN_TYPE.fullmatch(text):
        return False
    signature: Any = dspy.Signature  # its annotations leave out that it can be called
    try:
        read = signature(f"field: {text} -> other", custom_types=_DATES)
    except (ValueError, SyntaxError):  # such as a label with an arrow in it
        return False
    return read.input_fields["field"].annotation == annotation


def _text(signature: Any) -> str:
    sides = (signature.input_fields, signature.output_fields)
    return " -> ".join(
        ", ".join(f"{name}: {_type_text(field.annotation)}" for name, field in side.items()) for side in sides
    )


def _type_text(annotation: Any) -> str:
    is_name = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    text = annotation.__name__ if is_name else str(annotation)
    return text.replace("typing.", "").replace("datetime.", "")
