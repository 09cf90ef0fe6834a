"""The text form of a signature, the fields of a program, and the hash that optimizing does not change."""

from __future__ import annotations

import datetime
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import dspy
import pytest
from annotated_types import Ge
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from dspy_toolkit.errors import ProjectError
from dspy_toolkit.project.signatures import fields_of, parse_signature, schema_of, signature_hash


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Proposal(BaseModel):
    rank: Annotated[int, Ge(1)]
    size: Size


class Answer(dspy.Signature):
    """Answer it."""

    question: str = dspy.InputField()
    count: int = dspy.InputField(ge=0)
    answer: Literal["yes", "no"] = dspy.OutputField()
    proposal: Proposal = dspy.OutputField()


def test_parsing_gives_names_roles_types_and_instructions() -> None:
    made = parse_signature('text: str, n: int -> label: Literal["a", "b"], tags: list[str], sure: bool', "Decide.")
    assert list(made.input_fields) == ["text", "n"]
    assert {name: field.annotation for name, field in made.output_fields.items()} == {
        "label": Literal["a", "b"],
        "tags": list[str],
        "sure": bool,
    }
    assert made.instructions == "Decide."
    assert "text" in parse_signature("text -> label").instructions


def test_a_type_of_the_callers_is_not_found_by_chance() -> None:
    with pytest.raises(ProjectError, match="no type Proposal"):
        parse_signature("text -> label: Proposal")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Literal[1, -1, True, None]", Literal[1, -1, True, None]),
        ("Optional[int]", int | None),
        ("str | None", str | None),
        ("dict[str, list[float]]", dict[str, list[float]]),
        ("tuple[int, ...]", tuple[int, ...]),
        ("typing.List[datetime.date]", list[datetime.date]),
        ("Annotated[int, 'a count']", Annotated[int, "a count"]),
        ("dspy.Image", dspy.Image),
    ],
)
def test_types_of_the_text_form(text: str, expected: Any) -> None:
    def schema(kind: Any) -> Any:
        return TypeAdapter(kind).json_schema()

    assert schema(parse_signature(f"a -> b: {text}").output_fields["b"].annotation) == schema(expected)


@pytest.mark.parametrize(
    "kind",
    [
        "{module}",
        "{module}.Thing",
        "list[{module}.Thing]",
        "'{code}'",
        'List["{code}"]',
        'list["{code}"]',
        'Optional["{code}"]',
        'Annotated["{code}", 1]',
        "Literal[{code}]",
        "Annotated[str, {code}]",
        "typing.ForwardRef[{code}]",
    ],
)
def test_a_type_runs_no_code(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "written"
    (tmp_path / "hostile_types.py").write_text(f"open({str(written)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    code = f"open({str(written)!r}, chr(119))"
    with pytest.raises(ProjectError) as caught:
        parse_signature("text -> label: " + kind.format(module="hostile_types", code=code))
    assert "\n" not in str(caught.value)
    assert "hostile_types" not in sys.modules
    assert not written.exists()


_words = st.from_regex(r"[a-z]{2,6}_[a-z]{2,6}", fullmatch=True)
_labels = st.lists(st.text("abcdefghij -'", min_size=1, max_size=8), min_size=1, max_size=5, unique=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(_words, min_size=2, max_size=4, unique=True), _labels)
def test_parsing_inverts_writing(names: list[str], labels: list[str]) -> None:
    *inputs, output = names
    made = parse_signature(f"{', '.join(inputs)} -> {output}: Literal[{', '.join(map(repr, labels))}]")
    assert list(made.input_fields) == inputs
    assert get_args(made.output_fields[output].annotation) == tuple(labels)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", 'has 0 "->"'),
        ("text label", 'has 0 "->"'),
        ("a -> b -> c", 'has 2 "->"'),
        (" -> label", "nothing on one side"),
        ("text ->", "nothing on one side"),
        ("text: str -> label: Literal['a', ", "is not"),
        ("1a -> b", "invalid decimal literal"),
        ("a=3 -> b", "a default"),
        ("*, a -> b", "a star"),
        ("a): pass\ndef g(c -> b", "is not"),
        ("a -> a", "has the field 'a' twice"),
        ("a, a -> b", "has the field 'a' twice"),
        ("text -> copy", "keeps the name 'copy'"),
        ("demos -> label", "keeps the name 'demos'"),
        ("_text -> label", "keeps the name '_text'"),
        ("text: Strr -> label", "no type Strr"),
        ("text: sttr -> label", "Did you mean str?"),
        ("text -> label: Literal[a, b]", "need quotes"),
        ("text -> label: antigravity", "no type antigravity"),
        ("text -> label: Literal", "cannot be used"),
        ('text -> label: int["x"]', "'x' is no type"),
        ("text -> label: int[str]", "not subscriptable"),
        ("text -> label: 3", "3 is no type"),
        ("text -> label: 'str'", "'str' is no type"),
        ("text -> label: Optional[str, int]", "single type"),
        ("text -> label: list['int']", "'int' is no type"),
        ("text\0 -> label", "null bytes"),
        ("text -> label: " + " | ".join(["str"] * 5000), "recursion"),
        ("text -> label: dspy.Imag", "Imag"),
        ("text -> label: no_such_module.Thing", "no_such_module"),
    ],
)
def test_a_text_that_is_no_signature_is_explained_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ProjectError) as caught:
        parse_signature(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fields_keep_types_and_constraints() -> None:
    assert fields_of(dspy.ChainOfThought(Answer)) == {
        "question": str,
        "count": Annotated[int, Ge(0)],
        "reasoning": str,
        "answer": Literal["yes", "no"],
        "proposal": Proposal,
    }


class TwoSteps(dspy.Module):
    def __init__(self, first: str, second: str) -> None:
        self.first = dspy.Predict(first)
        self.second = dspy.Predict(second)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("text -> kind: Literal['a', 'b']", "text, kind -> label", Literal["a", "b"]),
        ("text, kind -> label", "text -> kind: Literal['a', 'b']", Literal["a", "b"]),
        ("kind: int -> label", "text -> kind: Literal['a', 'b']", Literal["a", "b"]),
        ("kind: int -> label", "text, kind -> other", int),
    ],
)
def test_a_field_of_two_predictors_has_the_most_telling_type(first: str, second: str, expected: object) -> None:
    assert fields_of(TwoSteps(first, second))["kind"] == expected


def test_the_hash_stays_when_an_optimizer_rewrites_the_words() -> None:
    program = dspy.ChainOfThought(Answer)
    before = signature_hash(program)
    predictor = program.predictors()[0]
    predictor.signature = predictor.signature.with_instructions("Think twice.").with_updated_fields("answer", desc="x")
    predictor.demos = [dspy.Example(question="q", answer="yes")]
    assert signature_hash(program) == before


@pytest.mark.parametrize(
    "changed",
    [
        "text -> label",
        "text: int -> label: str",
        "text, more -> label: int",
        "text -> other: int",
        "label: int -> text",
    ],
)
def test_the_hash_changes_with_names_roles_and_types(changed: str) -> None:
    assert signature_hash(dspy.Predict(changed)) != signature_hash(dspy.Predict("text -> label: int"))


def test_the_hash_is_the_same_in_every_process() -> None:
    program = (
        "import dspy; from dspy_toolkit.project.signatures import *\n"
        'text = \'text -> label: Literal["a", "b"], tags: set[str], image: dspy.Image\'\n'
        "print(signature_hash(dspy.Predict(parse_signature(text))))"
    )
    runs = {subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout for _ in range(2)}
    assert len(runs) == 1


def test_a_type_without_a_schema_is_told_by_its_name() -> None:
    class Opaque:
        pass

    assert schema_of(Opaque).endswith("Opaque")
    assert "0x" not in str(schema_of(list[Opaque]))
