"""Laws of the tree of prefixes, against a plain list."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.lm.engine.prefixes import MINIMUM, PrefixTree, shared_length

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
    tree = PrefixTree(budget, remember=3)
    model: list[tuple[bytes, int]] = []  # least recently used first
    for keep, prompt, nbytes in steps:
        if keep:
            tree.keep(prompt, prompt.tolist(), nbytes)
            if nbytes <= budget:
                model = [entry for entry in model if entry[0] != prompt.tobytes()] + [(prompt.tobytes(), nbytes)]
                while sum(size for _, size in model) > budget:
                    model.pop(0)
        else:
            tree.note(prompt)
            length, cache = tree.longest(prompt)
            fitting = [key for key, _ in model if len(key) < len(prompt.tobytes()) and prompt.tobytes().startswith(key)]
            if fitting:
                best = max(fitting, key=len)
                assert cache == prompt[:length].tolist()
                assert prompt[:length].tobytes() == best
                entry = next(entry for entry in model if entry[0] == best)
                model.remove(entry)
                model.append(entry)
            else:
                assert (length, cache) == (0, None)
        assert tree.nbytes == sum(size for _, size in model) <= budget
        assert len(tree) == len(model)


@given(st.lists(prompts, min_size=1, max_size=8), st.integers(1, 8))
def test_shared(seen: list[np.ndarray], remember: int) -> None:
    tree = PrefixTree(100, remember=remember)
    for prompt in seen:
        tree.note(prompt)
    prompt = seen[-1]
    others = seen[-remember:-1]
    best = max((min(shared_length(prompt, other), len(prompt) - 1) for other in others), default=0)
    assert tree.shared(prompt) == (best if best >= MINIMUM else 0)


@given(st.lists(prompts, max_size=6), prompts)
def test_a_kept_value_is_cut_to_what_a_prompt_shares_with_it(kept: list[np.ndarray], prompt: np.ndarray) -> None:
    tree = PrefixTree(10**6, cut=lambda value, length: (value[:length], length))
    for value in kept:
        tree.note(value)
        tree.keep(value, value.tolist(), len(value))
    tree.note(prompt)
    length, found = tree.longest(prompt)
    assert (found or []) == prompt[:length].tolist()
    best = max((shared_length(value, prompt[:-1]) for value in kept), default=0)
    whole = [len(value) for value in kept if len(value) <= shared_length(value, prompt[:-1])]
    assert length <= best
    # Cut only where it gives a good deal more than what is kept whole.
    assert length == best or best < MINIMUM or best <= max(whole, default=0) * 9 // 8


@given(st.lists(prompts, max_size=20), st.integers(0, 3))
def test_nothing_is_left_of_prompts_that_are_forgotten(seen: list[np.ndarray], remember: int) -> None:
    tree = PrefixTree(100, remember=remember)
    for prompt in seen:
        tree.note(prompt)
    expected = {
        prompt[: end + 1].tobytes() for prompt in seen[max(len(seen) - remember, 0) :] for end in range(len(prompt))
    }
    found: set[bytes] = set()
    waiting = [(tree._root, b"")]
    while waiting:
        node, before = waiting.pop()
        found |= {before + node.edge[: end + 1].tobytes() for end in range(len(node.edge))}
        waiting += [(child, before + node.edge.tobytes()) for child in node.children.values()]
    assert found == expected


def test_forgetting() -> None:
    tree = PrefixTree(100)
    prompt = np.arange(50)
    tree.keep(prompt, "cache", 10)
    tree.note(prompt)
    tree.clear()
    assert (len(tree), tree.nbytes) == (0, 0)
    assert tree.longest(np.arange(60)) == (0, None)
    tree.note(np.arange(60))
    assert tree.shared(np.arange(60)) == 0


def test_shedding_drops_the_least_recently_used_first() -> None:
    tree = PrefixTree(100)
    for start in range(3):
        tree.keep(np.arange(start, start + 50), start, 30)
    tree.longest(np.arange(60))
    tree.shed(40)
    assert tree.nbytes == 30
    assert tree.longest(np.arange(60)) == (50, 0)
