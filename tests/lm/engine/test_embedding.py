"""Vectors of texts from the engine, by itself and through LiteLLM and `dspy.Embedder`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspy_toolkit.errors import EngineFailed, PromptTooLong, RequestRefused
from dspy_toolkit.lm import Connection
from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.models.weights import find_weights, load_model
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import ask
from tests.lm.tiny import on_own_thread

TEXTS = ["one two three", "Where does the road go, and who walks there when it rains?", "Hi"]


def alone(folder: Path, home: Path, texts: list[list[int]]) -> np.ndarray:
    """Mean last hidden states, computed one text after another by mlx_lm's model."""
    import mlx.core as mx

    def work() -> np.ndarray:
        model, _ = load_model(find_weights(f"mlx/{folder}", home), "cpu")
        inner: Any = getattr(model, "language_model", model)
        rows = [np.array(inner.model(mx.array([text]))[0].mean(axis=0)) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows])

    return on_own_thread(work)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "qwen3_next"])
def test_vectors_are_the_mean_of_the_last_hidden_states(
    architecture: Callable[..., Path], tmp_path: Path, closing: Any, family: str
) -> None:
    folder = architecture(family)
    engine = closing(Engine(find_weights(f"mlx/{folder}", tmp_path), LMSettings(lease="share")))
    pending = engine.submit(ask("Tell me.", max_tokens=12))  # beside what is generated
    made = engine.embed(TEXTS).result(60)
    tokens = [engine._tokenizer.encode_text(text) for text in TEXTS]
    assert made.prompt_tokens == sum(len(text) for text in tokens)
    np.testing.assert_allclose(np.array(made.vectors), alone(folder, tmp_path, tokens), atol=1e-5)
    assert pending.result(60).completion_tokens > 0


def test_what_cannot_be_embedded(tiny: Callable[..., Path], tmp_path: Path) -> None:
    engine = Engine(find_weights(f"mlx/{tiny()}", tmp_path), LMSettings(lease="share"))
    with pytest.raises(RequestRefused, match="Text 2 of 2 is empty"):
        engine.embed(["a", ""])
    with pytest.raises(RequestRefused, match="no text"):
        engine.embed([])
    with pytest.raises(PromptTooLong):
        engine.embed(["word " * 5000])
    engine.close()
    with pytest.raises(EngineFailed, match="closed"):
        engine.embed(["a"])


def test_through_litellm_and_dspy(connection: Connection) -> None:
    import dspy
    import litellm

    cats, more_cats, bills = "The cat sleeps on the sofa.", "A cat is asleep on the couch.", "The invoice is overdue."
    vectors = dspy.Embedder(connection.model, caching=False)([cats, more_cats, bills])
    assert vectors.shape == (3, 576)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    made: Any = asyncio.run(litellm.aembedding(model=connection.model, input=cats))
    np.testing.assert_allclose(made.data[0]["embedding"], vectors[0], atol=1e-5)
    assert made.usage.prompt_tokens > 5
    with pytest.raises(litellm.BadRequestError, match="give a text"):
        litellm.embedding(model=connection.model, input=[[1, 2]])
