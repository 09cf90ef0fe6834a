"""Presence and frequency penalties, and logit bias."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.engine.tallies import Tallies, needs_tally
from tests.lm.asking import ask
from tests.lm.tiny import on_own_thread

SIZE = 12


def row(reply: list[int], **fields: Any) -> Any:
    return SimpleNamespace(request=ask(**fields), reply=reply)


def expected(rows: list[Any], logits: np.ndarray, ahead: list[int] | None = None) -> np.ndarray:
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence, and the bias."""
    out = logits.copy()
    for at, each in enumerate(rows):
        said = [*each.reply, *([ahead[at]] if ahead else [])]
        for token in range(SIZE):
            count = said.count(token)
            out[at, token] -= count * each.request.frequency_penalty + (count > 0) * each.request.presence_penalty
        for token, value in each.request.logit_bias:
            out[at, token] += value
    return out


def test_the_formula_step_by_step_and_ahead() -> None:
    rows = [
        row([3, 3, 5], presence_penalty=0.5, frequency_penalty=1.5),
        row([1], logit_bias=((2, 7.0), (1, -100.0))),
        row([4, 4]),
        row([], frequency_penalty=-1.0),
    ]
    assert [needs_tally(each) for each in rows] == [True, True, False, True]
    logits = np.random.default_rng(0).normal(size=(len(rows), SIZE)).astype(np.float32)

    def work() -> None:
        import mlx.core as mx

        tallies, given = Tallies(rows), mx.array(logits)
        np.testing.assert_allclose(np.array(tallies.apply(given)), expected(rows, logits), atol=1e-5)
        for each, new in zip(rows, ([5, 5, 6], [2], [], [0]), strict=True):
            each.reply += new
        np.testing.assert_allclose(np.array(tallies.apply(given)), expected(rows, logits), atol=1e-5)
        for made in (tallies, Tallies(rows)):  # one that knows the rows, and one that sees them first
            ahead = [5, 2, 4, 0]
            told = np.array(made.apply(given, mx.array(ahead)))
            np.testing.assert_allclose(told, expected(rows, logits, ahead), atol=1e-5)
        for each, token in zip(rows, [5, 2, 4, 0], strict=True):
            each.reply.append(token)  # what ran ahead was counted once
        np.testing.assert_allclose(np.array(tallies.apply(given)), expected(rows, logits), atol=1e-5)

    on_own_thread(work)


def test_a_bias_decides_and_its_neighbours_are_left_alone(engine: Engine) -> None:
    token = engine._tokenizer._tokenizer.encode(" lighthouse")[0]
    plain, other = ask(max_tokens=5), ask(max_tokens=5, logit_bias=((token, 100.0),))
    alone = engine.submit(plain).result(60).text
    both = [pending.result(60).text for pending in [engine.submit(plain), engine.submit(other)]]
    assert both == [alone, engine._tokenizer.decode([token] * 5)]
