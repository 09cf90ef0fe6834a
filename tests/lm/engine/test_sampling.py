"""Sampling on tiny arrays: which tokens can be drawn, how often, and by whose seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.lm.engine.sampling import make_penalty, make_sampler, top_logprobs
from tests.lm.asking import ask

Run = Callable[[Callable[[], Any]], Any]

PROBABILITIES = [0.4, 0.3, 0.2, 0.06, 0.04]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs something on a thread that cleans MLX's streams up: they must not outlive their thread."""
    import mlx.core as mx

    with ThreadPoolExecutor(1) as pool:
        yield lambda work: pool.submit(work).result()
        pool.submit(mx.clear_streams).result()


def draws(run: Run, number: int = 400, seed: int = 0, probabilities: list[float] = PROBABILITIES, **fields: Any) -> Any:
    """How often each token is drawn."""

    def work() -> Counter[int]:
        import mlx.core as mx

        sample = make_sampler(ask(**{"temperature": 1.0, **fields}), seed)
        assert sample is not None
        logprobs = mx.log(mx.array([probabilities]))
        return Counter(int(sample(logprobs).item()) for _ in range(number))

    return run(work)


def test_greedy_needs_no_sampler() -> None:
    assert make_sampler(ask(temperature=0.0, top_p=0.5, top_k=3), 1) is None


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 5}, {0, 1, 2, 3, 4}),
        ({"top_k": 500}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.65}, {0, 1}),
        ({"top_p": 0.01}, {0}),
        ({"min_p": 0.45}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_p": 0.95, "top_k": 3, "min_p": 0.6}, {0, 1}),
    ],
)
def test_filters_keep_what_they_say(run: Run, fields: dict[str, Any], kept: set[int]) -> None:
    assert set(draws(run, **fields)) == kept


def test_frequencies_follow_the_probabilities(run: Run) -> None:
    counts = draws(run, number=4000)
    assert all(abs(counts[token] / 4000 - p) < 0.04 for token, p in enumerate(PROBABILITIES))
    flat = draws(run, number=4000, temperature=5.0)
    assert flat[4] > 3 * counts[4]
    sharp = draws(run, number=400, temperature=0.1)
    assert sharp[0] > 350


def test_forbidden_tokens_are_never_drawn(run: Run) -> None:
    for fields in ({}, {"top_p": 0.9}, {"top_k": 4}, {"min_p": 0.01}):
        assert set(draws(run, probabilities=[0.0, 0.5, 0.0, 0.5, 0.0], **fields)) == {1, 3}


def test_a_seed_owns_its_draws(run: Run) -> None:
    """Two samplers side by side draw what each draws alone, whatever the global state is."""

    def work() -> tuple[list[int], list[int], list[int]]:
        import mlx.core as mx

        logprobs = mx.log(mx.array([PROBABILITIES]))

        def take(*samplers: Any) -> list[int]:
            return [int(sample(logprobs).item()) for _ in range(50) for sample in samplers]

        request = ask(temperature=1.0, top_p=0.99)
        alone = take(make_sampler(request, 7))
        mx.random.seed(123)
        beside = take(make_sampler(request, 7), make_sampler(request, 8))
        return alone, beside[::2], beside[1::2]

    alone, beside, other = run(work)
    assert alone == beside
    assert other != alone


def test_penalty_covers_prompt_and_reply(run: Run) -> None:
    assert make_penalty(ask()) is None

    def work() -> list[list[float]]:
        import mlx.core as mx

        penalize = make_penalty(ask(repetition_penalty=2.0))
        assert penalize is not None
        tokens = mx.array([0] + [3] * 5000 + [2, 2])
        return penalize(tokens, mx.array([[4.0, 4.0, -4.0, 0.0, -1.0]])).tolist()

    assert run(work) == [[2.0, 4.0, -8.0, 0.0, -1.0]]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-20, 0, width=32) | st.just(float("-inf")), min_size=1, max_size=12),
    st.integers(0, 14),
    st.booleans(),
    st.data(),
)
def test_top_logprobs(values: list[float], k: int, row: bool, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(values) - 1))

    def work() -> tuple[float, list[tuple[int, float]]]:
        import mlx.core as mx

        array = mx.array(values)
        try:
            return top_logprobs(array[None] if row else array, token, k)
        finally:
            mx.synchronize()

    with ThreadPoolExecutor(1) as pool:
        import mlx.core as mx

        chosen, top = pool.submit(work).result()
        pool.submit(mx.clear_streams).result()
    assert chosen == np.float32(values[token])
    finite = sorted((value for value in values if value > float("-inf")), reverse=True)[:k]
    assert [value for _, value in top] == finite[: len(top)]
    assert len(top) <= k
    assert all(values[index] == value for index, value in top)
    assert len(top) == min(k, sum(value > float("-inf") for value in values))
