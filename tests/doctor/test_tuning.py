"""`dspy-toolkit doctor --tune`: what is measured is kept where engines look for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_toolkit.doctor import tune
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.lm.engine.rules import rules_of
from dspy_toolkit.lm.models.hardware import inspect_hardware
from dspy_toolkit.lm.models.weights import find_weights
from dspy_toolkit.settings import load_settings
from tests.lm.tiny import write_tiny


def test_what_is_measured_is_kept(tmp_path: Path, model_home: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", tokenizer=model_home / "models" / "smollm2-135m")
    settings = load_settings(home=tmp_path / "home", lm={"model": f"mlx/{folder}", "lease": "share"})
    said = {finding.name: finding.value for finding in tune(settings, seconds=0.5)}
    rules = rules_of(settings.path(), find_weights(settings.lm.model, settings.path()).name, inspect_hardware())
    assert rules.width is not None and said["batch width"].startswith(f"{rules.width} sequence")
    assert said["chunk"].startswith(f"{rules.chunk} tokens") and f"{rules.fill:.0%}" in said["fill"]
    assert rules.applied(settings.lm).batch_size == rules.width


def test_a_model_of_somebody_else_is_not_tuned(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="openai/gpt-4o is not run by the engine"):
        list(tune(load_settings(home=tmp_path, lm={"model": "openai/gpt-4o"})))
