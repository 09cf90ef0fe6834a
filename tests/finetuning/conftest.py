"""Tiny models to train, and rows that they can learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dspy_toolkit.finetuning import TrainingRow
from dspy_toolkit.lm.models.weights import Weights, find_weights
from dspy_toolkit.lm.protocol import Message
from tests.lm.tiny import Kind, on_own_thread, write_tiny

RULES = "You sort things. Say a word for each, and say nothing else, whatever it is. " * 2
WORDS = ("lora", "clip", "diffusion", "federated")


def make_rows(count: int, replies: Sequence[str] = WORDS, rules: str = RULES) -> list[TrainingRow]:
    """Rows that begin alike and differ in their length."""
    return [
        TrainingRow(
            prompt=(
                Message(role="system", content=rules),
                Message(role="user", content=f"Thing {n}{', please' * (n % 3)}"),
            ),
            reply=replies[n % len(replies)],
        )
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def base(model_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Weights]:
    """`base(kind)`: the weights of a tiny model, written once for each kind."""
    folder, written = tmp_path_factory.mktemp("bases"), {}

    def weights(kind: Kind = "llama") -> Weights:
        if kind not in written:
            source = model_home / "models" / "smollm2-135m"
            written[kind] = find_weights(f"mlx/{write_tiny(folder / kind, kind, tokenizer=source)}", folder)
        return written[kind]

    return weights


@pytest.fixture
def with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of an earlier test may have put its functions into these modules."""
    on_own_thread(lambda: None)  # the BLAS before MLX
    from mlx_lm.models import activations, base, lfm2, llama

    for module in (llama, lfm2):
        monkeypatch.setattr(module, "scaled_dot_product_attention", base.scaled_dot_product_attention)
        monkeypatch.setattr(module, "swiglu", activations.swiglu, raising=False)
