"""Laws of the store of prefixes, against a plain list."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.lm.prefixes import MINIMUM, PrefixStore, shared_length

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(lambda t: np.asarray(t, dtype=np.int64))
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(
    lambda t: np.repeat(np.asarray(t, dtype=np.int64), 10)
)


@given(tokens, tokens)
def test_shared_length(a: np.ndarray, b: np.ndarray) -> None:
    n = shared_length(a, b)
    assert n == shared_length(b, a)
    assert np.array_equal(a[:n], b[:n])
    assert n == min(len(a), len(b)) or a[n] != b[n]


@given(st.integers(1, 60), st.lists(st.tuples(st.booleans(), tokens, st.integers(0, 25)), max_size=40))
def test_budget_order_and_longest(budget: int, steps: list[tuple[bool, np.ndarray, int]]) -> None:
    store = PrefixStore(budget)
    model: list[tuple[bytes, int]] = []  # least recently used first
    for keep, prompt, nbytes in steps:
        if keep:
            store.keep(prompt, prompt.tolist(), nbytes)
            if nbytes <= budget:
                model = [entry for entry in model if entry[0] != prompt.tobytes()] + [(prompt.tobytes(), nbytes)]
                while sum(size for _, size in model) > budget:
                    model.pop(0)
        else:
            length, cache = store.longest(prompt)
            fitting = [key for key, _ in model if len(key) < len(prompt.tobytes()) and prompt.tobytes().startswith(key)]
            if fitting:
                best = max(fitting, key=len)
                assert cache == prompt[:length].tolist()
                assert prompt[:length].tobytes() == best
                model.append(next(entry for entry in model if entry[0] == best))
                model.remove(model[-1])
            else:
                assert (length, cache) == (0, None)
        assert store.nbytes == sum(size for _, size in model) <= budget
        assert len(store) == len(model)


@given(prompts, st.lists(prompts, max_size=4), st.lists(prompts, max_size=4))
def test_worth_sharing(prompt: np.ndarray, others: list[np.ndarray], recent: list[np.ndarray]) -> None:
    store = PrefixStore(100)
    store.remember(recent)
    shared = store.worth_sharing(prompt, [prompt, *others])
    best = max((min(shared_length(prompt, other), len(prompt) - 1) for other in (*others, *recent)), default=0)
    assert shared == (best if best >= MINIMUM else 0)


def test_forgetting() -> None:
    store = PrefixStore(100)
    prompt = np.arange(50)
    store.keep(prompt, "cache", 10)
    store.remember([prompt])
    store.clear()
    assert (len(store), store.nbytes) == (0, 0)
    assert store.longest(np.arange(60)) == (0, None)
    assert store.worth_sharing(np.arange(60), []) == 0
