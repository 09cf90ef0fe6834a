"""NumPy's softmax and SiLU give what MLX's give."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("groups", [1, 3, 9])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("kind", ["none", "causal", "bool", "per head", "additive"])
def test_attention_is_that_of_mlx(kind: str, length: int, groups: int) -> None:
    import mlx.core as mx

    from dspy_toolkit.lm.models.cpu import make_attention

    heads, seen, width, batch = 9, 12, 8, 2
    keys = [mx.random.key(n) for n in range(4)]
    q = mx.random.normal((batch, heads, length, width), key=keys[0])
    k, v = (mx.random.normal((batch, groups, seen, width), key=key) for key in keys[1:3])
    keep = mx.random.uniform(shape=(batch, heads if kind == "per head" else 1, length, seen), key=keys[3]) > 0.4
    keep = mx.concatenate([mx.ones((*keep.shape[:3], 1), dtype=mx.bool_), keep[..., 1:]], axis=-1)
    mask: Any = {"none": None, "causal": "causal", "additive": mx.where(keep, 0.0, -1e9)}.get(kind, keep)

    def unused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("MLX's own attention was taken")

    ours = make_attention(unused)(q, k, v, cache=None, scale=0.3, mask=mask)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)
    assert ours.shape == theirs.shape
    assert mx.allclose(ours, theirs, atol=1e-5).item()


def test_what_it_does_not_cover_goes_mlx_own_way() -> None:
    import mlx.core as mx

    from dspy_toolkit.lm.models.cpu import make_attention

    half = mx.zeros((1, 1, 1, 4), dtype=mx.float16)
    assert (
        make_attention(lambda *args, **kwargs: "original")(half, half, half, cache=None, scale=1, mask=None)
        == "original"
    )


def test_swiglu_is_that_of_mlx_also_for_extreme_gates() -> None:
    import mlx.core as mx
    import mlx.nn as nn

    from dspy_toolkit.lm.models.cpu import swiglu

    gate, x = mx.linspace(-200, 200, 401), mx.linspace(-1, 1, 401)
    assert mx.allclose(swiglu(gate, x), nn.silu(gate) * x, atol=1e-5).item()


def test_logits_of_the_embedded_model_do_not_change(model_home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx
    from mlx_lm.models import activations, base, llama

    from dspy_toolkit.lm.models.cpu import install
    from dspy_toolkit.lm.models.weights import find_weights, load_model

    model, tokenizer = load_model(find_weights("mlx/smollm2-135m", model_home), "cpu")
    prompt = mx.array([tokenizer.encode("The capital of France is the city of")])
    monkeypatch.setattr(llama, "swiglu", activations.swiglu)
    monkeypatch.setattr(llama, "scaled_dot_product_attention", base.scaled_dot_product_attention)
    plain = model(prompt)
    mx.eval(plain)
    install(model)
    assert llama.swiglu is not activations.swiglu
    through_numpy = model(prompt)
    assert mx.abs(through_numpy - plain).max().item() < 1e-3
