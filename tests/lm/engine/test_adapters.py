"""One base and many adapters in one engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspy_toolkit.errors import ModelError, ModelNotFound, RequestRefused
from dspy_toolkit.lm.engine.engine import Engine
from dspy_toolkit.lm.models.adapters import AdapterConfig, StoredAdapter, add_adapter, find_adapter, write_adapter
from dspy_toolkit.lm.models.weights import Weights, find_weights, load_model
from dspy_toolkit.settings import LMSettings
from tests.lm.asking import send, settled, turns
from tests.lm.reference import Reference
from tests.lm.tiny import on_own_thread, write_lora

RULES = "You classify requests. " + " ".join(f"Topic {n} goes to desk {n % 5}." for n in range(15))
PROMPTS = [turns(f"Where does topic {n} go{', please' * (n % 3)}?", RULES) for n in range(3)] + [turns("Hello!")]


def origin_of(weights: Weights) -> dict[str, Any]:
    """Of an adapter that nobody trained."""
    return {
        "base": weights.name,
        "base_sha256": weights.sha256,
        "rows_sha256": "",
        "settings": {},
        "best_step": 1,
        "steps": 1,
        "tokens": 1,
        "seconds": 1.0,
        "versions": {},
    }


@pytest.fixture
def weights(tiny: Callable[..., Path], tmp_path: Path) -> Weights:
    return find_weights(f"mlx/{tiny('llama')}", tmp_path)


@pytest.fixture
def store(weights: Weights, tmp_path: Path) -> Callable[..., StoredAdapter]:
    """`store(seed, dora=…)`: an adapter in the home; without a base, of `weights`."""

    def store(seed: int, *, dora: bool = False, base: Weights = weights) -> StoredAdapter:
        from safetensors.numpy import load_file, save

        folder = write_lora(tmp_path / f"lora {seed} {dora}", weights.folder, scale=2.0, seed=seed)
        arrays = load_file(folder / "adapters.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text())
        if dora:
            config["fine_tune_type"] = "dora"
            for name in [name for name in arrays if name.endswith("lora_b")]:
                size = arrays[name].shape[1]
                arrays[f"{name.removesuffix('.lora_b')}.m"] = np.linspace(1, 3, size, dtype=np.float32)
        return write_adapter(tmp_path, AdapterConfig.model_validate(config), save(arrays), origin_of(base))

    return store


@pytest.fixture
def engine(weights: Weights) -> Iterator[Engine]:
    engine = Engine(weights, LMSettings(lease="share"))
    yield engine
    engine.close()


def answers(engine: Engine, adapter: str | None) -> list[str]:
    return [pending.result(60).text for pending in [send(engine, prompt, adapter=adapter) for prompt in PROMPTS]]


def alone(weights: Weights, adapter: StoredAdapter | None, tmp_path: Path) -> Reference:
    name = f"mlx/{weights.folder}"
    return Reference(find_weights(name if adapter is None else f"{name}+{adapter.name}", tmp_path))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_says_what_it_says_in_an_engine_of_its_own(
    engine: Engine, weights: Weights, store: Callable[..., StoredAdapter], tmp_path: Path, dora: bool
) -> None:
    adapter = store(1, dora=dora)
    plain = answers(engine, None)
    adapted = answers(engine, adapter.sha256)
    assert plain != adapted
    for found, texts in ((None, plain), (adapter, adapted)):
        reference = alone(weights, found, tmp_path)
        try:
            for prompt, text in zip(PROMPTS, texts, strict=True):
                reference.check(prompt, text)
        finally:
            reference.close()
    assert answers(engine, adapter.sha256[:8]) == adapted
    assert answers(engine, None) == plain


@pytest.mark.parametrize("dora", [False, True])
def test_the_logits_are_those_of_the_fused_model(
    weights: Weights, store: Callable[..., StoredAdapter], tmp_path: Path, dora: bool
) -> None:
    adapters = [store(seed, dora=dora) for seed in range(10)]

    def run() -> None:
        import mlx.core as mx

        from dspy_toolkit.lm.engine.adapters import Adapters

        tokens = mx.array([list(range(5, 40))])
        model = load_model(weights, "cpu")[0]
        before = np.array(model(tokens))
        held = Adapters(model, tmp_path / "adapters", most=3)
        held.activate(adapters[0].sha256)
        swapped = np.array(model(tokens))
        fused = load_model(find_weights(f"mlx/{weights.folder}+{adapters[0].name}", tmp_path), "cpu")[0]
        assert np.abs(swapped - np.array(fused(tokens))).max() <= 1e-3
        assert np.abs(swapped - before).max() > 0.1
        del fused
        memory = []
        for _ in range(2):
            for adapter in adapters:
                held.activate(adapter.sha256)
                mx.eval(model(tokens))
            held.activate(None)
            memory.append(mx.get_active_memory())
        assert memory[1] - memory[0] < 4096, "no memory is left behind; an adapter has twice as much"
        assert np.array_equal(np.array(model(tokens)), before), "the base computes what it did, to the bit"

    on_own_thread(run)


def test_adapters_and_the_base_at_once(engine: Engine, store: Callable[..., StoredAdapter]) -> None:
    """From 8 threads each gives what it gives alone."""
    names = [None, store(1).sha256, store(2).sha256]
    expected = {name: answers(engine, name) for name in names}
    assert len({tuple(texts) for texts in expected.values()}) == 3
    with ThreadPoolExecutor(8) as pool:
        asked = [names[n % 3] for n in range(24)]
        for name, texts in zip(asked, pool.map(lambda name: answers(engine, name), asked), strict=True):
            assert texts == expected[name]
    now = settled(engine)
    assert now.finished == now.requests
    assert now.failed == 0


def test_prefixes_are_an_adapters_own(engine: Engine, store: Callable[..., StoredAdapter]) -> None:
    adapter = store(1).sha256
    for name, reused in ((None, 0), (adapter, 0), (adapter, 100), (None, 100)):
        reply = send(engine, PROMPTS[0], adapter=name).result(60)
        assert (reply.reused_tokens > 0) == (reused > 0)
        assert reply.reused_tokens >= reused


def test_adapters_that_cannot_be_had(
    engine: Engine, weights: Weights, store: Callable[..., StoredAdapter], tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound, match=r"has no adapter whose hash begins with 0123456789. Train it again"):
        send(engine, PROMPTS[0], adapter="0123456789")
    with pytest.raises(RequestRefused, match="adapter"):
        send(engine, PROMPTS[0], adapter="../../etc")
    other = Weights("mlx/other@deadbeef", weights.folder, "deadbeef" * 8)
    foreign = store(3, base=other)
    wrong = (
        rf"trained on mlx/other@deadbeef, whose weights have hash deadbeef; these have {weights.sha256[:8]}\. Run it on"
    )
    with pytest.raises(ModelError, match=wrong):
        send(engine, PROMPTS[0], adapter=foreign.sha256)
    with pytest.raises(ModelError, match=wrong):
        find_weights(f"mlx/{weights.folder}+{foreign.name}", tmp_path)


def test_an_adapter_that_does_not_fit_ends_its_own_requests_only(
    engine: Engine, weights: Weights, tmp_path: Path
) -> None:
    from safetensors.numpy import save

    arrays = {
        "model.layers.0.self_attn.q_proj.lora_a": np.zeros((5, 4), np.float32),
        "model.layers.0.self_attn.q_proj.lora_b": np.zeros((4, 64), np.float32),
    }
    parameters = {"rank": 4, "scale": 1.0, "dropout": 0.0}
    config = AdapterConfig(fine_tune_type="lora", num_layers=-1, lora_parameters=parameters)
    misfit = write_adapter(tmp_path, config, save(arrays), origin_of(weights))
    waiting = [send(engine, prompt, adapter=name) for prompt in PROMPTS for name in (None, misfit.sha256)]
    for pending in waiting[::2]:
        assert pending.result(60).text
    for pending in waiting[1::2]:
        with pytest.raises(ModelError, match=r"has shape \(64, 64\), the adapter's \(5, 4\)"):
            pending.result(60)


def test_adapters_from_elsewhere_are_checked(store: Callable[..., StoredAdapter], tmp_path: Path) -> None:
    made = store(1)
    home = tmp_path / "elsewhere"
    (made.folder / "0000100_adapters.safetensors").write_bytes(b"a checkpoint")
    added = add_adapter(home, made.folder)
    assert (added.sha256, added.origin) == (made.sha256, made.origin)
    assert {path.name for path in added.folder.iterdir()} == {
        "adapters.safetensors",
        "adapter_config.json",
        "adapter.json",
    }
    assert add_adapter(home, made.folder) == added
    assert find_adapter(home, made.sha256[:8]) == added
    with (added.folder / "adapters.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    with pytest.raises(ModelNotFound, match="changed: its content has hash"):
        find_adapter(home, made.sha256)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("adapters.safetensors", b"\x80\x04\x95 a pickle, perhaps", "adapters.safetensors is no adapter's"),
        ("adapters.safetensors", b"\x02\0\0\0\0\0\0\0{}", "adapters.safetensors is no adapter's: it is empty"),
        ("adapter_config.json", b'{"fine_tune_type": "full"}', "adapter_config.json is no adapter's"),
        ("adapter_config.json", b" " * 70_000, "has 70000 bytes; at most 65536 are taken"),
        ("adapter.json", b"{}", r"adapter.json cannot be used: sha256: Field required"),
        ("adapter.json", None, r"adapter.json is missing"),
    ],
)
def test_what_is_no_adapter_is_refused(
    store: Callable[..., StoredAdapter], tmp_path: Path, name: str, data: bytes | None, told: str
) -> None:
    folder = store(1).folder
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=told):
        add_adapter(tmp_path / "elsewhere", folder)
    assert not (tmp_path / "elsewhere" / "adapters").exists()
