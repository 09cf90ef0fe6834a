"""The tiny models are what they claim to be."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny import WINDOW

from dspy_toolkit.lm.weights import find_weights, load_model

Tiny = Callable[..., Path]


def on_own_thread(work: Callable[[], Any]) -> Any:
    """MLX's streams must not outlive their thread."""
    import mlx.core as mx

    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(work).result()
        finally:
            pool.submit(mx.clear_streams).result()


def greedy(model: Path | str, home: Path, question: str, tokens: int = 12) -> tuple[str, list[float], list[str]]:
    """(reply, distance of the best two logits at each token, names of the cache's classes)."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import make_prompt_cache

    def run() -> tuple[str, list[float], list[str]]:
        loaded, tokenizer = load_model(find_weights(f"mlx/{model}", home), "cpu")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        said, gaps = [], []
        for token, logprobs in generate_step(mx.array(prompt), loaded, max_tokens=tokens):
            best = mx.sort(logprobs)[-2:].tolist()
            gaps.append(best[1] - best[0])
            if token in tokenizer.eos_token_ids:
                break
            said.append(int(token))
        return tokenizer.decode(said), gaps, [type(layer).__name__ for layer in make_prompt_cache(loaded)]

    return on_own_thread(run)


@pytest.mark.parametrize(
    ("kind", "caches"),
    [
        ("llama", ["KVCache"] * 4),
        ("sliding", ["RotatingKVCache", "KVCache"] * 2),
        ("hybrid", ["ArraysCache", "KVCache"] * 2),
    ],
)
def test_random_models(tiny: Tiny, tmp_path: Path, kind: str, caches: list[str]) -> None:
    question = "one two three " * WINDOW
    first, gaps, classes = greedy(tiny(kind), tmp_path, question)
    assert classes == caches
    assert first == greedy(tiny(kind), tmp_path, question)[0]
    assert first != greedy(tiny(kind), tmp_path, "four " + question)[0]  # the reply hangs on the whole prompt
    assert min(gaps) > 1e-3, gaps


def test_a_model_with_something_to_say(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny(template="thinking", says=("<think>", "Hm, a sum. ", "</think>", "It is 4."))
    said, gaps, _ = greedy(folder, tmp_path, "What is 2 + 2?")
    assert said == "<think>Hm, a sum. </think>It is 4."
    assert min(gaps) > 1
