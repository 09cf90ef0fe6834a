"""Choosing tokens in NumPy: the filters by their definitions, and draws that a seed repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.lm.engine.one_row import Sampler, keep_likely
from tests.lm.asking import ask

VOCABULARY = 50


def decode(tokens: Any) -> str:
    return " ".join(str(token) for token in tokens)


def logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=VOCABULARY).astype(np.float32)


def logprobs(seed: int) -> np.ndarray:
    values = logits(seed).astype(np.float64)
    return values - np.log(np.exp(values).sum())


def draws(count: int = 200, **fields: Any) -> list[int]:
    sampler = Sampler(ask(**fields), decode)
    return [sampler.choose(logits(1), None, np.array([], dtype=np.int64))[0] for _ in range(count)]


@given(st.integers(0, 1000), st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_hold_the_probability(seed: int, top_p: float) -> None:
    values = logprobs(seed)
    kept = np.isfinite(keep_likely(values, top_p, 0, 0))
    probabilities = np.exp(values)
    assert probabilities[kept].sum() >= top_p - 1e-9
    assert probabilities[kept].sum() - probabilities[kept].min() < top_p
    assert probabilities[kept].min() >= probabilities[~kept].max(initial=0)


@given(st.integers(0, 1000), st.floats(0.001, 1))
def test_min_p_is_relative_to_the_likeliest(seed: int, min_p: float) -> None:
    values = logprobs(seed)
    kept = np.isfinite(keep_likely(values, 1, min_p, 0))
    assert kept[values.argmax()]
    ratio = np.exp(values - values.max())
    assert (ratio[kept] >= min_p * (1 - 1e-9)).all() and (ratio[~kept] <= min_p * (1 + 1e-9)).all()


@given(st.integers(0, 1000), st.integers(1, 2 * VOCABULARY))
def test_top_k_keeps_so_many(seed: int, top_k: int) -> None:
    kept = np.isfinite(keep_likely(logprobs(seed), 1, 0, top_k))
    assert kept.sum() == min(top_k, VOCABULARY)
    assert kept[logprobs(seed).argmax()]


def test_greedy_takes_the_likeliest_that_is_allowed() -> None:
    order = np.argsort(-logits(1))
    assert set(draws(3)) == {order[0]}
    allowed = np.ones(VOCABULARY, dtype=bool)
    allowed[order[:2]] = False
    token, told = Sampler(ask(), decode).choose(logits(1), allowed, np.array([1]))
    assert (token, told) == (order[2], None)


def test_draws_follow_the_probabilities() -> None:
    seen = np.bincount(draws(4000, temperature=1.0, seed=1), minlength=VOCABULARY) / 4000
    assert np.abs(seen - np.exp(logprobs(1))).max() < 0.03


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_a_filter_that_leaves_one_is_greedy(fields: dict[str, Any]) -> None:
    assert set(draws(20, temperature=2.0, **fields)) == {logits(1).argmax()}


def test_a_seed_repeats_its_draws_and_no_other_does() -> None:
    first = draws(temperature=1.0, seed=7)
    assert draws(temperature=1.0, seed=7) == first
    assert draws(temperature=1.0, seed=8) != first
    assert draws(temperature=1.0) != draws(temperature=1.0)
    assert draws(3, temperature=1.0, seed=-1)  # any number is one


def test_the_repetition_penalty_makes_what_was_said_less_likely() -> None:
    values = np.array([2.0, 1.5, -1.0, -1.1], dtype=np.float32)
    sampler = Sampler(ask(repetition_penalty=2.0, logprobs=4), decode)
    token, told = sampler.choose(values, None, np.array([0, 0, 2]))
    assert token == 1 and told is not None
    expected = np.array([1.0, 1.5, -2.0, -1.1])
    expected -= np.log(np.exp(expected).sum())
    assert dict(told.top) == pytest.approx({str(index): value for index, value in enumerate(expected)}, abs=1e-5)
    assert values[0] == 2.0


def test_log_probabilities_are_those_under_the_grammar() -> None:
    allowed = np.zeros(VOCABULARY, dtype=bool)
    allowed[[3, 4]] = True
    _, told = Sampler(ask(logprobs=5, temperature=1.5, seed=1), decode).choose(logits(1), allowed, np.array([1]))
    assert told is not None and {name for name, _ in told.top} == {"3", "4"}
    assert np.exp([value for _, value in told.top]).sum() == pytest.approx(1)
    assert told.logprob == dict(told.top)[told.token]
