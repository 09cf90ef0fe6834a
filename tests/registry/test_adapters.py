"""A version whose program has an adapter holds it, and brings it to a home that lacks it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from safetensors.numpy import save as to_safetensors

from dspy_toolkit.errors import ModelNotFound, RegistryError
from dspy_toolkit.lm.levers import adapter_of, pull
from dspy_toolkit.lm.models.adapters import AdapterConfig, find_adapter, write_adapter
from dspy_toolkit.optimizers.states import fill, state_of
from dspy_toolkit.registry import Manifest, find_version, load_version, save_version
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking import runs as tracking


def adapter_in(home: Settings) -> str:
    """The hash of an adapter of two small matrices, kept in a home."""
    tensors = {"model.layers.0.mlp.up_proj.lora_a": np.ones((4, 2), np.float32)}
    tensors["model.layers.0.mlp.up_proj.lora_b"] = np.zeros((2, 4), np.float32)
    config = AdapterConfig(
        fine_tune_type="lora", num_layers=1, lora_parameters={"rank": 2, "scale": 2.0, "dropout": 0.0}
    )
    origin: dict[str, Any] = {"base": "mlx/tiny", "base_sha256": "1" * 64, "rows_sha256": "2" * 64, "settings": {}}
    origin |= {"best_step": 1, "steps": 1, "tokens": 8, "seconds": 0.1, "versions": {}}
    return write_adapter(home.path(), config, to_safetensors(tensors), origin).sha256


def saved(home: Settings) -> tuple[str, dict[str, Any]]:
    """(the adapter's hash, the program's state) of version 1 of the router."""
    sha256 = adapter_in(home)
    program = dspy.Predict("request -> project")
    pull(program, format="plain", adapter=sha256)
    manifest = Manifest(
        project="router", optimizer="finetune", model="mlx/tiny@11111111", metric="exact_match",
        signature_fields={"request": "str", "project": "str"}, signature_sha256="0" * 64,
    )  # fmt: skip
    run_id = tracking.open_run(home, "router", "optimize router")
    assert save_version(home, "router", state_of(program), manifest, run_id) == 1
    return sha256, state_of(program)


def test_another_home_gets_the_adapter_with_the_version(home: Settings, tmp_path: Path) -> None:
    sha256, state = saved(home)
    run_id = find_version(home, "router@1").run_id
    folder = shutil.copytree(home.path("artifacts", run_id, "artifacts", "program"), tmp_path / "bundle")
    other = Settings(home=tmp_path / "other")
    with pytest.raises(ModelNotFound):
        find_adapter(other.path(), sha256)
    loaded, _ = load_version(other, str(folder))
    assert loaded == state
    assert find_adapter(other.path(), sha256, "1" * 64).sha256 == sha256
    program = fill(dspy.Predict("request -> project"), loaded)
    assert adapter_of(program) == sha256


def test_a_lost_adapter_is_taken_from_the_version(home: Settings) -> None:
    sha256, _ = saved(home)
    shutil.rmtree(home.path("adapters"))
    load_version(home, "router@1")
    assert find_adapter(home.path(), sha256).sha256 == sha256


def test_a_version_without_its_adapter_is_refused(home: Settings, tmp_path: Path) -> None:
    sha256, _ = saved(home)
    run_id = find_version(home, "router@1").run_id
    folder = shutil.copytree(home.path("artifacts", run_id, "artifacts", "program"), tmp_path / "bundle")
    shutil.rmtree(folder / "adapters")
    with pytest.raises(RegistryError, match=rf"{sha256[:8]}.*neither"):
        load_version(Settings(home=tmp_path / "other"), str(folder))


def test_an_adapter_that_was_changed_on_its_way_is_refused(home: Settings, tmp_path: Path) -> None:
    sha256, _ = saved(home)
    run_id = find_version(home, "router@1").run_id
    folder = shutil.copytree(home.path("artifacts", run_id, "artifacts", "program"), tmp_path / "bundle")
    config = folder / "adapters" / sha256 / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 2}))
    other = Settings(home=tmp_path / "other")
    with pytest.raises(Exception, match="damaged or changed"):
        load_version(other, str(folder))
    assert not other.path("adapters").exists() or not list(other.path("adapters").iterdir())
