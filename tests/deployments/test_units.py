"""The units, the image and the composition can be read, and run what is there. No container engine and no systemd run them here."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from deployments.bootstrap import ORDER, app, services_of
from deployments.places import Places, Ports
from dspy_toolkit.settings import Settings

HERE = Path(__file__).parents[2] / "deployments"


def test_launchds_unit_runs_a_service_that_there_is() -> None:
    text = (HERE / "units/com.dspy-toolkit.service.plist").read_bytes()
    read = plistlib.loads(text.replace(b"SERVICE", b"worker").replace(b"CLONE", b"/clone"))
    assert read["Label"] == "com.dspy-toolkit.worker" and read["KeepAlive"] is True
    assert read["ProgramArguments"][1:] == ["-m", "deployments.bootstrap", "run", "worker"]
    assert read["Umask"] == 0o077


def test_systemds_unit_runs_a_service_that_there_is(tmp_path: Path) -> None:
    text = (HERE / "units/dspy-toolkit@.service").read_text()
    assert "ExecStart=%h/dspy_toolkit/.venv/bin/python -m deployments.bootstrap run %i" in text
    assert set(re.findall(r"@(\w+)", text.split("[Unit]")[0])) == set(ORDER)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    there = tmp_path / "dspy-toolkit@worker.service"
    there.write_text(re.sub(r"^(ExecStart=)\S+ .*$", r"\1/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", there], capture_output=True, text=True, check=False)
    assert "dspy-toolkit@worker.service" not in done.stderr, done.stderr


def test_the_command_of_the_units_is_there(home: Settings, tmp_path: Path) -> None:
    assert {"up", "down", "status", "run"} <= set(app)
    assert set(services_of(Places(tmp_path, home, Ports()))) <= set(ORDER)


def test_the_composition_starts_what_the_tests_start_and_holds_no_password() -> None:
    read = yaml.safe_load((HERE / "compose.yaml").read_text())
    assert read["services"].keys() == {"postgres", "server", "mlflow", "worker"}
    for name, service in read["services"].items():
        assert "image" in service or service["build"]["dockerfile"] == "deployments/Dockerfile"
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|AUTH", key):
                assert value.startswith("${"), key
    assert read["services"]["server"]["command"][:3] == ["prefect", "server", "start"]
    assert "prefect worker start --pool mlx" in read["services"]["worker"]["command"][-1]
    assert "prefect work-pool create mlx --type process" in read["services"]["worker"]["command"][-1]


def test_the_image_is_made_of_files_that_are_there() -> None:
    lines = (HERE / "Dockerfile").read_text().splitlines()
    kinds = {line.split()[0] for line in lines if line and not line.startswith(("#", " "))}
    assert kinds == {"FROM", "RUN", "USER", "WORKDIR", "COPY", "ENV", "CMD"}
    [first] = [line for line in lines if line.startswith("COPY") and line.endswith(" ./")]
    for name in first.split()[2:-1]:
        assert (HERE.parent / name).is_file(), name
