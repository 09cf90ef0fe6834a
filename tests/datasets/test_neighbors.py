"""The near-duplicate search is exact: it agrees with comparing every pair."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.datasets.neighbors import Neighbors, comparable


def jaccard(one: str, other: str) -> float:
    def grams(text: str) -> set[str]:
        return {text[i : i + 5] for i in range(len(text) - 4)} or {text.ljust(5, "\0")}

    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def near_pairs(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    index = Neighbors(texts, threshold)
    found = {(text, other) for text in range(len(texts)) for other in index.near(text).tolist()}
    assert found == {(other, text) for text, other in found}
    return {(text, other) for text, other in found if text < other}


WORDS = st.lists(st.sampled_from(["ab", "abc", "hello there", "wörld", "東京都", "😀"]), max_size=12).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(WORDS | st.text(st.characters(codec="utf-8"), max_size=12), max_size=12),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
)
def test_agrees_with_comparing_every_pair(texts: list[str], threshold: float) -> None:
    texts = [text.replace("\0", "") for text in texts]
    expected = {(i, j) for j in range(len(texts)) for i in range(j) if jaccard(texts[i], texts[j]) >= threshold - 1e-9}
    assert near_pairs(texts, threshold) == expected


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(WORDS, max_size=14), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_joins_what_comparing_every_pair_would(data: st.DataObject, texts: list[str], threshold: float) -> None:
    """Old texts, some of them joined before, and new ones: only a pair with a new one joins."""
    first_new = data.draw(st.integers(0, len(texts)))
    before = [data.draw(st.integers(0, len(texts) - 1)) if text < first_new else text for text in range(len(texts))]
    expected = before.copy()
    for j in range(first_new, len(texts)):
        for i in range(j):
            if jaccard(texts[i], texts[j]) >= threshold - 1e-9:
                expected = [expected[i] if label == expected[j] else label for label in expected]
    found = Neighbors(texts, threshold).joined(np.array(before, dtype=np.int64), first_new).tolist()
    assert len(set(zip(expected, found, strict=True))) == len(set(expected)) == len(set(found))


@pytest.mark.parametrize("letters", [2, 40, 500, 20_000], ids="{} letters".format)
def test_agrees_for_alphabets_of_any_size(letters: int) -> None:
    source = random.Random(letters)
    alphabet = [chr(0x4E00 + letter) for letter in range(letters)]
    bases = [source.choices(alphabet, k=source.randint(3, 90)) for _ in range(8)]
    bases.append(alphabet)  # every letter is there
    texts = []
    for _ in range(60):
        text = source.choice(bases[:-1]).copy()
        for _ in range(source.randrange(4)):
            text[source.randrange(len(text))] = source.choice(alphabet)
        texts.append("".join(text))
    texts.append("".join(bases[-1]))
    expected = {(i, j) for j in range(61) for i in range(j) if jaccard(texts[i], texts[j]) >= 0.8 - 1e-9}
    assert expected
    assert near_pairs(texts, 0.8) == expected


def test_texts_longer_than_what_is_read_at_a_time() -> None:
    source = random.Random(0)
    base = "".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=700_000))
    texts = [base, "short", base[:600_000], base[:500_000], base[350_000:], "short"]
    assert [len(text) > 2**18 for text in texts] == [True, False, True, True, True, False]
    # By their lengths: six sevenths, five sixths, then five sevenths and less.
    assert near_pairs(texts, 0.8) == {(0, 2), (2, 3), (1, 5)}
    labels = Neighbors(texts, 0.8).joined(np.arange(6), 0).tolist()
    assert labels[0] == labels[2] == labels[3]
    assert labels[1] == labels[5]
    assert len(set(labels)) == 3


def test_agrees_close_to_the_threshold() -> None:
    # Copies of one text with a few letters changed: many pairs a little above and a little below 0.8.
    source = random.Random(0)
    base = "".join(source.choices("abcdefgh ", k=120))
    texts = []
    for _ in range(60):
        letters = list(base)
        for _ in range(source.randrange(5)):
            letters[source.randrange(120)] = "z"
        texts.append("".join(letters))
    expected = {(i, j) for j in range(60) for i in range(j) if jaccard(texts[i], texts[j]) >= 0.8}
    assert 100 < len(expected) < 1700  # else the test shows nothing
    assert near_pairs(texts, 0.8) == expected


@pytest.mark.parametrize(
    ("one", "other"), [("Hello  World", "hello world "), ("STRASSE", "straße"), ("a\nb\tc", "a b c")]
)
def test_case_and_white_space_do_not_count(one: str, other: str) -> None:
    assert comparable([one]) == comparable([other])


def test_two_inputs_are_not_one() -> None:
    assert comparable(["ab", "c"]) != comparable(["a", "bc"])
