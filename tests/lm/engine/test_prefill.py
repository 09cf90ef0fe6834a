"""Prompts are prefilled in groups of similar length, a chunk at a time, and leave in the caches what each alone leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.lm.engine.prefill import PADDING, Prefill, group


@given(st.lists(st.integers(0, 400), max_size=40))
def test_groups_hold_each_row_once_and_little_padding(lengths: list[int]) -> None:
    groups = group(lengths)
    assert sorted(index for indices in groups for index in indices) == list(range(len(lengths)))
    for indices in groups:
        places = max(lengths[index] for index in indices) * len(indices)
        assert places - sum(lengths[index] for index in indices) <= PADDING * places


@pytest.fixture(scope="module")
def model() -> Any:
    """A llama of two small layers."""
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    from dspy_toolkit.lm.models import cpu

    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=50,
            tie_word_embeddings=False,
        )
    )
    mx.eval(model.parameters())
    cpu.install(model)
    return model


def alone(model: Any, tokens: np.ndarray) -> list[Any]:
    """The caches of one row after `tokens`, as mlx_lm keeps them."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    if len(tokens):
        model(mx.array(tokens)[None], cache=cache)
        mx.eval([layer.state for layer in cache])
    return cache


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("chunk", [4, 1000])
@pytest.mark.parametrize("lengths", [[7], [20, 19, 18, 20], [12, 3, 12]])
def test_the_caches_are_those_of_each_row_alone(model: Any, shared: bool, chunk: int, lengths: list[int]) -> None:
    import mlx.core as mx

    from dspy_toolkit.lm.engine.caches import compact

    draw = np.random.default_rng(sum(lengths))
    beginnings = [draw.integers(0, 50, 9), draw.integers(0, 50, 5), None]
    prefixes = [None if beginning is None else compact(alone(model, beginning)) for beginning in beginnings]
    rows = [(index % 3, draw.integers(0, 50, length)) for index, length in enumerate(lengths)]
    rows.sort(key=lambda row: row[0])
    prefill = Prefill(model, [tokens for _, tokens in rows], [prefixes[kind] for kind, _ in rows], shared=shared)
    while not prefill.done:
        prefill.advance(chunk)
    assert prefill.padding == max(lengths) * len(lengths) - sum(lengths)
    assert prefill.computed == max(lengths) * len(lengths)
    for index, (kind, tokens) in enumerate(rows):
        beginning = beginnings[kind]
        expected = alone(model, tokens if beginning is None else np.concatenate([beginning, tokens]))
        for cache, layer in zip(prefill.caches, expected, strict=True):
            got = cache.extract(index)
            assert got.offset == layer.offset
            assert mx.allclose(got.keys, layer.keys[..., : layer.offset, :], atol=1e-4).item()
            assert mx.allclose(got.values, layer.values[..., : layer.offset, :], atol=1e-4).item()


def test_rows_leave_and_join_without_changing_the_others(model: Any) -> None:
    import mlx.core as mx

    from dspy_toolkit.lm.engine.caches import compact, extend, keep_rows, start

    draw = np.random.default_rng(0)
    tokens = [draw.integers(0, 50, 6) for _ in range(4)]
    prefix = compact(alone(model, draw.integers(0, 50, 8)))
    prefills = [Prefill(model, [row], [prefix], shared=True) for row in tokens]
    for prefill in prefills:
        prefill.advance(100)
    caches: list[Any] = []
    for prefill in prefills:
        caches = extend(caches, prefill.caches)
    caches = keep_rows(caches, [0, 2, 3])
    logits = model(mx.array([[1]] * 3), cache=caches)[:, 0]
    for at, row in enumerate((0, 2, 3)):
        again = Prefill(model, [tokens[row]], [prefix], shared=True)
        again.advance(100)
        assert mx.allclose(logits[at], model(mx.array([[1]]), cache=again.caches)[0, 0], atol=1e-4).item()
    assert keep_rows(caches, []) == []
    assert all(cache.nbytes == 0 for cache in start(model, [None], shared=True))


@pytest.mark.parametrize("shared", [True, False])
def test_a_branch_goes_its_own_way(model: Any, shared: bool) -> None:
    """Copies of rows grow, and leave those that they were copied from as they are; a row may be copied several times."""
    import mlx.core as mx

    from dspy_toolkit.lm.engine.caches import branch, compact

    draw = np.random.default_rng(1)
    prefix = compact(alone(model, draw.integers(0, 50, 8)))
    prefill = Prefill(model, [draw.integers(0, 50, length) for length in (6, 4)], [prefix, None], shared=shared)
    prefill.advance(100)
    before = [prefill.caches[0].extract(row).keys for row in (0, 1)]
    copies = branch(prefill.caches, [1, 0, 1], 2)
    logits = model(mx.array([[3, 4], [3, 4], [3, 5]]), cache=copies)
    assert [copies[0].extract(row).offset for row in range(3)] == [6, 16, 6]
    for row in (0, 1):
        assert mx.array_equal(prefill.caches[0].extract(row).keys, before[row]).item()
    own = model(mx.array([[3, 4], [3, 5]]), cache=prefill.caches)
    assert mx.allclose(logits[1], own[0], atol=1e-4).item()
    assert mx.allclose(logits[2], own[1], atol=1e-4).item()
