"""A model with an adapter: found, named, loaded, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.errors import ModelError, ModelNotFound
from dspy_toolkit.lm.models.weights import find_weights, load_model
from tests.lm.tiny import greedy, on_own_thread, write_lora

Tiny = Callable[..., Path]
QUESTION = "What is a lighthouse?"


@pytest.fixture
def base(tiny: Tiny) -> Path:
    return tiny("llama")


def test_an_adapter_changes_the_reply(base: Path, tmp_path: Path) -> None:
    plain = greedy(base, tmp_path, QUESTION)[0]
    nothing = write_lora(tmp_path / "nothing", base, zero=True)
    assert greedy(f"{base}+{nothing}", tmp_path, QUESTION)[0] == plain
    trained = write_lora(tmp_path / "trained", base)
    assert greedy(f"{base}+{trained}", tmp_path, QUESTION)[0] != plain


def test_on_the_cpu_it_is_added_into_the_weights(base: Path, tmp_path: Path) -> None:
    """The same logits as mlx_lm's own adapter beside the weights."""
    import mlx.core as mx

    weights = find_weights(f"mlx/{base}+{write_lora(tmp_path / 'a', base)}", tmp_path)

    def logits(device: str) -> tuple[Any, set[str]]:
        model, _ = load_model(weights, device)
        with mx.stream(mx.cpu):
            return model(mx.array([[5, 6, 7]])).tolist(), {type(module).__name__ for module in model.modules()}

    inside, kinds = on_own_thread(lambda: logits("cpu"))
    beside, kinds_beside = on_own_thread(lambda: logits("metal"))
    assert "LoRALinear" not in kinds
    assert "LoRALinear" in kinds_beside
    assert inside[0][-1] == pytest.approx(beside[0][-1], abs=1e-3)


@pytest.mark.soak
def test_on_the_quantized_embedded_model(model_home: Path, tmp_path: Path) -> None:
    folder = model_home / "models" / "smollm2-135m"
    plain = greedy("smollm2-135m", model_home, QUESTION, tokens=6)[0]
    nothing = write_lora(tmp_path / "nothing", folder, zero=True)
    assert greedy(f"smollm2-135m+{nothing}", model_home, QUESTION, tokens=6)[0] == plain
    trained = write_lora(tmp_path / "trained", folder)
    assert greedy(f"smollm2-135m+{trained}", model_home, QUESTION, tokens=6)[0] != plain


def test_the_name_covers_the_adapter(base: Path, tmp_path: Path) -> None:
    adapter = write_lora(tmp_path / "my lora", base)
    found = find_weights(f"mlx/{base}+{adapter}", tmp_path)
    assert found.name == f"mlx/{base.name}+my lora@{found.sha256[:8]}"
    assert (found.folder, found.adapter) == (base, adapter)
    assert find_weights(f"mlx/{base}+{adapter}@{found.sha256[:8]}", tmp_path) == found
    assert find_weights(f"mlx/{base}", tmp_path).sha256 != found.sha256
    other = write_lora(tmp_path / "other" / "my lora", base, seed=1)
    assert find_weights(f"mlx/{base}+{other}", tmp_path).name != found.name
    (adapter / "0000100_adapters.safetensors").write_bytes(b"a checkpoint")
    assert find_weights(f"mlx/{base}+{adapter}", tmp_path) == found
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] = 1.0
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotFound, match=rf"have hash [0-9a-f]{{8}}, not {found.sha256[:8]}"):
        find_weights(f"mlx/{base}+{adapter}@{found.sha256[:8]}", tmp_path)


def test_a_plus_in_the_names_of_folders(base: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base, tmp_path / "c++" / "a+b"))
    adapter = write_lora(tmp_path / "x+y" / "lora+1", base)
    assert find_weights(f"mlx/{model}", tmp_path).adapter is None
    found = find_weights(f"mlx/{model}+{adapter}", tmp_path)
    assert (found.folder, found.adapter) == (model, adapter)


def test_what_is_no_adapter(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"The adapter 'nowhere' of mlx/.* is not a folder here"):
        find_weights(f"mlx/{base}+nowhere", tmp_path)
    with pytest.raises(ModelNotFound, match="The adapter '' of mlx/"):
        find_weights(f"mlx/{base}+", tmp_path)
    for name in ("adapter_config.json", "adapters.safetensors"):
        adapter = write_lora(tmp_path / name, base)
        (adapter / name).unlink()
        with pytest.raises(ModelNotFound, match=rf"has no {name}.*mlx_lm\.lora"):
            find_weights(f"mlx/{base}+{adapter}", tmp_path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"lora_parameters": {"rank": 8, "scale": 1.0, "dropout": 0.0}}, "does not match"),
        ({"lora_parameters": {"rank": 4, "alpha": 1.0, "dropout": 0.0}}, "scale"),
        (
            {"num_layers": 0, "lora_parameters": {"rank": 4, "scale": 1.0, "dropout": 0.0, "keys": ["x"]}},
            "incompatible",
        ),
        ("{", "cannot be put on this model"),
        ({"num_layers": None}, "cannot be put on this model"),
    ],
)
def test_an_adapter_of_another_model(base: Path, tmp_path: Path, damage: Any, told: str) -> None:
    adapter = write_lora(tmp_path / "a", base)
    path = adapter / "adapter_config.json"
    path.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(path.read_text()) | damage))
    weights = find_weights(f"mlx/{base}+{adapter}", tmp_path)
    with pytest.raises(ModelError, match=told) as caught:
        on_own_thread(lambda: load_model(weights, "cpu"))
    assert "Use the model that it was trained on" in str(caught.value)
    assert "\n" not in str(caught.value)
