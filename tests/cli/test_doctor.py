"""The command says what is in force and what is wrong, and changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.settings import Settings


def lines(ended) -> dict[str, dict[str, Any]]:
    return {f"{line['subject']}.{line['name']}": line for line in json.loads(ended.out)["findings"]}


def test_a_sound_machine_has_nothing_wrong(command, home: Settings) -> None:
    ended = command("doctor", "--json")
    assert ended.code == 0 and json.loads(ended.out)["ok"]
    found = lines(ended)
    assert {"packages.dspy", "machine.BLAS", "machine.cores", "model.model", "home.disk", "tracking.MLflow"} <= set(
        found
    )
    assert found["model.model"]["state"] == "note"  # not converted yet, and not converted by looking
    assert [path.name for path in home.path().iterdir()] == ["mlflow.db"]
    assert found["projects.router"]["state"] == "ok"


def test_the_report_is_readable(command) -> None:
    ended = command("doctor")
    assert ended.code == 0
    assert "Nothing is wrong." in ended.out
    assert all(len(line) <= 80 for line in ended.out.splitlines())


def test_what_is_wrong_is_named_with_its_remedy(command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSPY_TOOLKIT_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", "mlx/no-such-model")
    ended = command("doctor", "--json")
    assert ended.code == 1 and not json.loads(ended.out)["ok"]
    found = lines(ended)
    for name, advice in (("home.folder", "DSPY_TOOLKIT_HOME"), ("model.model", "lm.model")):
        assert found[name]["state"] == "wrong" and advice in found[name]["advice"]


def test_wrong_settings_are_a_finding(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_TOOLKIT_LM__BATCH_SIZE", "0")
    ended = command("doctor")
    assert ended.code == 1
    assert "lm.batch_size" in ended.out and "1 thing to mend" in ended.out


def test_the_order_of_the_backends(command, monkeypatch: pytest.MonkeyPatch, home: Settings) -> None:
    for name in ("litellm.fallback", "models.hardware"):
        monkeypatch.setattr(f"dspy_toolkit.lm.{name}.torch_installed", lambda: False)
    monkeypatch.setenv("DSPY_TOOLKIT_LM__FALLBACKS", '["openai/gpt-4o-mini"]')
    found = lines(command("doctor", "--json"))["model.backends"]
    assert found["state"] == "ok" and found["value"].startswith("mlx ")
    assert ", then openai/gpt-4o-mini" in found["value"] and "torch is not installed" in found["value"]
    monkeypatch.setenv("DSPY_TOOLKIT_LM__BACKEND", "mlx")
    found = lines(command("doctor", "--json"))["model.backends"]
    assert found["state"] == "note" and "openai" not in found["value"] and "lm.backend" in found["advice"]
    monkeypatch.setenv("DSPY_TOOLKIT_LM__BACKEND", "torch")
    found = lines(command("doctor", "--json"))["model.backends"]
    assert found["state"] == "wrong" and "dspy-toolkit[torch]" in found["advice"]


def test_generate_runs_the_real_model(command, home: Settings, engine, model_home: Path) -> None:
    shutil.copytree(model_home / "models", home.path("models"))
    ended = command("doctor", "--generate", "--json")
    found = lines(ended)
    assert ended.code == 0
    assert found["model.model"]["state"] == "ok" and "needs" in found["model.model"]["value"]
    assert "tokens/s" in found["generation.speed"]["value"]
    for part in ("for the engine", "weights", "KV cache", "prefixes", "freed buffers", "batch width", "context"):
        assert ": " in found[f"memory.{part}"]["value"]


def test_a_model_that_does_not_fit_is_wrong(
    command, home: Settings, model_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_home / "models", home.path("models"))
    monkeypatch.setenv("DSPY_TOOLKIT_LM__MEMORY_LIMIT_GB", "0.5")
    ended = command("doctor", "--json")
    found = lines(ended)["model.model"]
    assert ended.code == 1 and found["state"] == "wrong"
    assert "There are 512.0 MB (lm.memory_limit_gb is 0.5" in found["advice"]
