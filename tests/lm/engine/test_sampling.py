"""Sampling on tiny arrays: which tokens can be drawn, how often, and by whose seed."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.lm.engine.choosing import Chooser
from dspy_toolkit.lm.engine.masks import Masks
from dspy_toolkit.lm.engine.sampling import SEEDS, Draws, seed_of
from tests.lm.asking import ask
from tests.lm.engine.batches import Run

PROBABILITIES = [0.4, 0.3, 0.2, 0.06, 0.04]


def draws(run: Run, number: int = 400, seed: int = 0, probabilities: list[float] = PROBABILITIES, **fields: Any) -> Any:
    """How often each token is drawn."""

    def work() -> Counter[int]:
        import mlx.core as mx

        draw = Draws([ask(**{"temperature": 1.0, **fields})] * number, [seed] * number)
        logprobs = mx.broadcast_to(mx.log(mx.array([probabilities])), (number, len(probabilities)))
        return Counter(draw(logprobs, range(number)).tolist())

    return run(work)


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


def test_rows_with_filters_of_their_own_are_drawn_together(run: Run) -> None:
    filters: list[dict[str, Any]] = [{"top_k": 2}, {}, {"top_p": 0.65}, {"min_p": 0.45}, {"top_k": 3, "top_p": 0.95}]
    kept = [{0, 1}, {0, 1, 2, 3, 4}, {0, 1}, {0, 1, 2}, {0, 1, 2}]

    def work() -> list[set[int]]:
        import mlx.core as mx

        rows = [ask(temperature=1.0, **fields) for fields in filters]
        draw = Draws(rows, [5] * len(rows))
        logprobs = mx.broadcast_to(mx.log(mx.array([PROBABILITIES])), (len(rows), len(PROBABILITIES)))
        drawn = [draw(logprobs, [place] * len(rows)).tolist() for place in range(300)]
        return [set(row) for row in zip(*drawn, strict=True)]

    assert run(work) == kept


def test_a_seed_owns_its_draws(run: Run) -> None:
    """Whoever is drawn beside it, and whatever the global state is, a row draws what it draws alone."""

    def work() -> tuple[list[int], list[int], list[int]]:
        import mlx.core as mx

        request, others = ask(temperature=1.0, top_p=0.99), [ask(temperature=2.0), ask(temperature=1.0, top_k=4)]
        one = mx.log(mx.array([PROBABILITIES]))
        three = mx.broadcast_to(one, (3, len(PROBABILITIES)))
        alone = [int(Draws([request], [7])(one, [place]).item()) for place in range(50)]
        mx.random.seed(123)
        beside = [Draws([others[0], request, others[1]], [7, 7, 8])(three, [9, n, n]).tolist() for n in range(50)]
        return alone, [row[1] for row in beside], [row[2] for row in beside]

    alone, beside, other = run(work)
    assert alone == beside
    assert other != alone


def test_a_seed_draws_apart_for_other_prompts() -> None:
    prompt, other = np.array([3, 4, 5]), np.array([3, 4, 6])
    assert seed_of(7, prompt) == seed_of(7 + SEEDS, prompt) == seed_of(7, prompt.astype(np.int32))
    assert len({seed_of(7, prompt), seed_of(7, other), seed_of(8, prompt)}) == 3
    assert seed_of(-1, prompt) != seed_of(None, prompt) != seed_of(None, prompt)


class Row:
    """What choosing asks of a sequence."""

    def __init__(self, prompt: list[int], reply: list[int], **fields: Any) -> None:
        self.request, self.prompt, self.prompt_size = ask(**fields), np.array(prompt), len(prompt)
        self.reply, self.seed, self.matcher = reply, 0, None


def choose(rows: list[Row], logits: list[list[float]], bits: Any = None) -> list[Any]:
    import mlx.core as mx

    chooser = Chooser(Masks("cuda", lambda: len(logits[0])))
    return chooser.choose(mx.array(logits), rows, bits).read(str)  # type: ignore[arg-type]


def test_penalty_covers_prompt_and_reply(run: Run) -> None:
    """Of 0, 2 and 3 the positive logits are halved and the negative ones doubled; the others' row is left as it is."""
    rows = [
        Row([0] + [3] * 50, [2, 2], repetition_penalty=2.0, logprobs=5),
        Row([0], [3], logprobs=5),
        Row([4], [], repetition_penalty=4.0, logprobs=5),
    ]
    logits = [[4.0, 3.0, -4.0, 0.0, -1.0]] * 3
    found = run(lambda: choose(rows, logits))
    assert [token for _, token, _ in found] == [1, 0, 0]
    for (_, _, said), expected in zip(
        found, ([2.0, 3.0, -8.0, 0.0, -1.0], logits[1], [4.0, 3.0, -4.0, 0.0, -4.0]), strict=True
    ):
        total = np.log(np.exp(expected).sum())
        assert dict(said.top) == {str(n): pytest.approx(value - total, abs=1e-5) for n, value in enumerate(expected)}


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_log_probabilities_are_of_what_the_grammar_allows(data: st.DataObject) -> None:
    vocabulary = data.draw(st.integers(1, 70))
    rows = data.draw(st.integers(1, 3))
    values = st.lists(st.floats(-20, 20, width=32), min_size=vocabulary, max_size=vocabulary)
    logits = [data.draw(values) for _ in range(rows)]
    allowed = np.array(
        [data.draw(st.lists(st.booleans(), min_size=vocabulary, max_size=vocabulary)) for _ in range(rows)]
    )
    allowed[np.arange(rows), data.draw(st.integers(0, vocabulary - 1))] = True
    words = np.zeros((rows, (vocabulary + 31) // 32 * 32), dtype=np.uint8)
    words[:, :vocabulary] = allowed
    bits = np.packbits(words, axis=1, bitorder="little").view(np.int32)
    asked = [data.draw(st.none() | st.integers(0, 20)) for _ in range(rows)]
    with ThreadPoolExecutor(1) as pool:
        import mlx.core as mx

        found = pool.submit(choose, [Row([0], [], logprobs=k) for k in asked], logits, bits).result()
        pool.submit(mx.clear_streams).result()
    for (_, token, said), scores, free, k in zip(found, logits, allowed, asked, strict=True):
        masked = np.where(free, np.array(scores), -np.inf)
        assert masked[token] == masked.max()
        assert (said is None) == (k is None)
        if said is not None:
            exact = masked - np.log(np.exp(masked - masked.max()).sum()) - masked.max()
            assert said.logprob == pytest.approx(exact[token], abs=1e-4)
            best = sorted(exact[free], reverse=True)[:k]
            assert [value for _, value in said.top] == pytest.approx(best, abs=1e-4)
            assert all(exact[int(name)] == pytest.approx(value, abs=1e-4) for name, value in said.top)
