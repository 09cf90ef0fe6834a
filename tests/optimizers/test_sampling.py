"""Samples are the same every time, grow at their end, and are even over the answers."""

from __future__ import annotations

from collections import Counter

import dspy
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.optimizers.sampling import balanced, sample_rows

ANSWERS = st.lists(st.sampled_from("abcd"), max_size=60)


def frame(count: int) -> pd.DataFrame:
    return pd.DataFrame({"text": [str(number) for number in range(count)], "_row": [f"r{n}" for n in range(count)]})


def cases(answers: list[str]) -> list[dspy.Example]:
    return [dspy.Example(text=str(n), label=label).with_inputs("text") for n, label in enumerate(answers)]


@given(count=st.integers(0, 50), small=st.integers(0, 60), more=st.integers(0, 20))
def test_a_smaller_sample_is_the_beginning_of_a_larger_one(count: int, small: int, more: int) -> None:
    rows = frame(count)
    first, second = (list(sample_rows(rows, size)["_row"]) for size in (small, small + more))
    assert second[: len(first)] == first
    assert len(first) == min(small, count)
    assert len(set(second)) == len(second)


@given(count=st.integers(1, 40), size=st.integers(1, 40))
def test_a_sample_does_not_depend_on_the_order_of_the_rows(count: int, size: int) -> None:
    rows = frame(count)
    there, back = sample_rows(rows, size), sample_rows(rows.iloc[::-1], size)
    assert list(there["_row"]) == list(back["_row"])


@given(answers=ANSWERS, count=st.integers(0, 70), seed=st.integers(0, 9))
def test_balanced_rows_differ_by_one_unless_an_answer_runs_out(answers: list[str], count: int, seed: int) -> None:
    chosen = balanced(cases(answers), count, seed)
    assert len(chosen) == min(count, len(answers))
    assert len({case.text for case in chosen}) == len(chosen)
    there, taken = Counter(answers), Counter(case.label for case in chosen)
    most = max(taken.values(), default=0)
    assert all(taken[label] >= min(there[label], most - 1) for label in there)


@given(answers=ANSWERS, count=st.integers(0, 70), seed=st.integers(0, 9))
def test_balanced_rows_are_the_same_every_time(answers: list[str], count: int, seed: int) -> None:
    first, second = (balanced(cases(answers), count, seed) for _ in range(2))
    assert [case.text for case in first] == [case.text for case in second]
