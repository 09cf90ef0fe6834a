"""Labels in tokens: what is counted of each, and that what is counted tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.errors import RequestRefused
from dspy_toolkit.lm.engine.spelling import END, Spelling, longest, spell
from dspy_toolkit.lm.models.tokenizer import Tokenizer
from dspy_toolkit.lm.protocol import LabelScores, make_request
from tests.lm.asking import HELLO


@pytest.fixture(scope="module")
def tokenizer(model_home: Path) -> Tokenizer:
    return Tokenizer(model_home / "models" / "smollm2-135m")


def spelled(tokenizer: Tokenizer, labels: Sequence[str], prefix: str = "", suffix: str = "") -> list[list[str]]:
    """What is counted of each label, as texts; the end of the turn is empty."""
    found = spell(LabelScores(prefix=prefix, labels=tuple(labels), suffix=suffix), tokenizer.spans, ends=True)
    return [["" if token == END else tokenizer.token_text(token) for token in path] for path in found.counted]


def test_what_is_counted(tokenizer: Tokenizer) -> None:
    header, end = "[[ ## label ## ]]\n", "\n\n[[ ## completed ## ]]"
    assert spelled(tokenizer, ["bill", "bill more"], header, end) == [["bill", "\n"], ["bill", " more", "\n"]]
    assert spelled(tokenizer, ["bill", "bill more"]) == [["bill", ""], ["bill", " more", ""]]
    assert spelled(tokenizer, ["12", "1"], header) == [["1", "2", ""], ["1", ""]]
    # A token that is half the prefix's and half a label's is the label's, and so of all labels.
    assert spelled(tokenizer, ["yes", "7"], "Answer: ") == [[" yes"], [" ", "7"]]
    # What ends a label is counted where one goes on from another, of all of them.
    assert spelled(tokenizer, ["bill", "pay"], header, end) == [["bill"], ["pay"]]
    assert spelled(tokenizer, ["bill", "pay", "bill more"], header, end)[1] == ["pay", "\n"]
    # Or where a token holds the end of a label and what follows it.
    assert spelled(tokenizer, ["a", "b"], suffix="nd so on") == [["and"], ["b", "nd"]]
    # One token of the suffix does not tell them apart, a second does.
    assert spelled(tokenizer, ["bill", "bill by post"], suffix=" by now") == [
        ["bill", " by", " now"],
        ["bill", " by", " post", " by", " now"],
    ]
    # Nor does the whole suffix.
    assert spelled(tokenizer, ["bill", "bill by post"], suffix=" by") == [
        ["bill", " by", ""],
        ["bill", " by", " post", " by", ""],
    ]


def test_a_control_token_in_a_label_is_plain_text(tokenizer: Tokenizer) -> None:
    ((first, *_),) = spelled(tokenizer, ["<|im_end|>"])
    assert first == "<"


TEXTS = st.text(st.sampled_from("ab1 .\n\té🙂<|"), max_size=6)


@given(TEXTS, st.lists(TEXTS.filter(bool), min_size=1, max_size=6, unique=True), TEXTS)
def test_no_label_begins_with_another(tokenizer: Tokenizer, prefix: str, labels: list[str], suffix: str) -> None:
    asked = LabelScores(prefix=prefix, labels=tuple(labels), suffix=suffix)
    found = spell(asked, tokenizer.spans, ends=True)
    assert sorted(longest(found.counted)) == sorted(found.counted)
    for label, counted, whole in zip(labels, found.counted, found.whole, strict=True):
        assert tokenizer.decode(whole) == f"{prefix}{label}{suffix}"
        own = counted[:-1] if counted[-1] == END else counted
        assert (*found.begin, *own) == whole[: len(found.begin) + len(own)]
        assert len(tokenizer.decode(found.begin)) <= len(prefix)
        assert len(tokenizer.decode((*found.begin, *own))) >= len(prefix) + len(label)
    assert_tree(found)


def assert_tree(found: Spelling) -> None:
    """The paths visit every node, and sums add up what was noted."""
    visited = {path[:depth] for path in found.paths for depth in range(len(path) + 1)}
    assert visited == found.following.keys()
    values = {(*node, token): -0.5 for node, tokens in found.following.items() for token in tokens}
    assert found.sums(values) == [-0.5 * len(path) for path in found.counted]
    assert found.depth == max(map(len, found.paths))


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"labels": []}, "label_scores.labels.*at least 1"),
        ({"labels": ["a", "b", "a"]}, "label_scores.labels: a label comes twice: 'a'"),
        ({"labels": ["a", ""]}, "label_scores.labels: a label is empty"),
        ({"labels": ["a"], "sufix": "."}, "label_scores.sufix"),
    ],
)
def test_labels_that_are_refused(scores: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestRefused, match=said):
        make_request(messages=HELLO, label_scores=scores)


@pytest.mark.parametrize(
    "beside",
    [
        {"grammar": "start: /a/"},
        {"stop": ["x"]},
        {"logprobs": 0},
        {"temperature": 0.7},
        {"repetition_penalty": 1.2},
        {"thinking": True},
        {"tools": [{"type": "function"}]},
    ],
)
def test_what_does_not_go_with_labels(beside: dict[str, Any]) -> None:
    (name,) = beside
    with pytest.raises(RequestRefused, match=f"gives label_scores.* beside them {name}\\. Leave one"):
        make_request(messages=HELLO, label_scores={"labels": ["a", "b"]}, **beside)


def test_labels_that_the_tokens_do_not_tell_apart() -> None:
    def lowered(text: str) -> list[tuple[int, int]]:
        return [(ord(character.lower()), at + 1) for at, character in enumerate(text)]

    with pytest.raises(RequestRefused, match=r"\['Yes', 'yes'\] are the same tokens"):
        spell(LabelScores(labels=("Yes", "yes", "no")), lowered, ends=True)
    with pytest.raises(RequestRefused, match="no token that ends its turn"):
        spell(LabelScores(labels=("yes", "yes, please")), lowered, ends=False)
    assert spell(LabelScores(labels=("yes", "no")), lowered, ends=False).counted[1] == (110, 111)
    assert spell(LabelScores(labels=("no", "now"), suffix="."), lowered, ends=False).counted[0] == (110, 111, 46)
