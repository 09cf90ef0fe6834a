"""`dspy-toolkit advise`, by the functions behind it and by its command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dspy_toolkit.cli.advise import advise
from dspy_toolkit.errors import ProjectError, StoreError


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_TOOLKIT_HOME", str(tmp_path / "home"))


def test_options_give_a_configuration_and_its_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run config.toml"
    advise("federated", yaml=file, clients="30", skew="strong")
    said = capsys.readouterr().out
    assert "clients: dozens" in said and "Not known: devices" in said and "Expected: accuracy" in said
    assert "num-server-rounds" in file.read_text()


def test_json_is_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    advise("lora", json=True, memory="16GB", model="3B", rows="3000", text="chat")
    said = json.loads(capsys.readouterr().out)
    assert said["situation"]["rows"] == "thousands"
    assert said["range"] is None and said["outside"], "a 3B model was not measured"
    assert "lora_parameters" in said["written"]


def test_faults_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="no advice on 'fedrated'. Did you mean federated"):
        advise("fedrated")
    with pytest.raises(ProjectError, match="Did you mean clients"):
        advise("federated", clients_="5")
    with pytest.raises(StoreError, match="is a folder"):
        advise("federated", yaml=tmp_path)
    with pytest.raises(ProjectError, match="no export for 'keras'"):
        advise("federated", tool="keras")
