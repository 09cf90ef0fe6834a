"""mlx_lm alone, to compare the engine with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from dspy_toolkit.lm.models.weights import Weights, load_model
from tests.lm.asking import LENGTH

TIE = 1e-3
"""Logits nearer than this to each other change places with the order of additions."""


class Reference:
    """One prompt after another, on one thread of its own.

    Not on the main thread: MLX's caches of compiled functions live as long as their thread, and outliving the interpreter
    they crash the process at its end.
    """

    def __init__(self, weights: Weights) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.model, self.tokenizer = self.pool.submit(load_model, weights, "cpu").result()

    def close(self) -> None:
        import mlx.core as mx

        del self.model
        self.pool.submit(mx.clear_streams).result()
        self.pool.shutdown()

    def greedy(self, messages: list[dict[str, str]]) -> tuple[list[int], list[float]]:
        """(tokens, the distance between the best two logits at each)."""
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        tokens: list[int] = []
        gaps: list[float] = []
        for token, logprobs in generate_step(mx.array(prompt), self.model, max_tokens=LENGTH):
            if token in self.tokenizer.eos_token_ids:
                break
            best = mx.sort(logprobs)[-2:].tolist()
            tokens.append(int(token))
            gaps.append(best[1] - best[0])
        return tokens, gaps

    def check(self, messages: list[dict[str, str]], text: str) -> None:
        """`text` is the greedy reply, or leaves it where the best two tokens are as good as equal."""
        tokens, gaps = self.pool.submit(self.greedy, messages).result()
        decode = self.tokenizer.decode
        if text == decode(tokens, skip_special_tokens=True):
            return
        kept = next(n for n in range(len(tokens) + 1) if not text.startswith(decode(tokens[: n + 1])))
        print(f"{text!r} leaves {decode(tokens)!r} after {kept} tokens, where the best two are {gaps[kept]:.2g} apart")
        assert gaps[kept] < TIE
