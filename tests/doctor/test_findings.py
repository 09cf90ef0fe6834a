"""The doctor names what is in force and what is wrong; of a model that cannot generate it says why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_toolkit.doctor import Finding, examine
from dspy_toolkit.doctor.findings import configuration, lease, tracking
from dspy_toolkit.doctor.findings import home as home_findings
from dspy_toolkit.errors import EngineFailed
from dspy_toolkit.lm import root_error
from dspy_toolkit.lm.connection import serve_engine
from dspy_toolkit.lm.models.lease import lease_path
from dspy_toolkit.settings import Settings, load_settings
from dspy_toolkit.testing import FakeEngine
from tests.engines import own_engines


def test_a_setting_tells_where_it_comes_from_and_keeps_its_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dspy-toolkit.toml").write_text(
        "[lm]\ntemperature = 0.5\n[projects.router.lm]\nmax_tokens = 9\napi_key = 'hidden-1'\n"
    )
    monkeypatch.setenv("DSPY_TOOLKIT_LM__API_KEY", "hidden-2")
    monkeypatch.setenv("DSPY_TOOLKIT_REGISTRY__TRACKING_URI", "postgresql://me:hidden-3@host/db")
    seen = {finding.name: finding.value for finding in configuration(load_settings())}
    assert seen["lm.temperature"] == "0.5  ← dspy-toolkit.toml"
    assert seen["lm.api_key"].endswith("← environment (DSPY_TOOLKIT_LM__API_KEY)")
    assert seen["projects.router.lm.max_tokens"] == "9  ← dspy-toolkit.toml"
    assert seen["lm.batch_size"] == "16"
    assert "hidden" not in str(seen)


def test_little_space_is_wrong(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in home_findings(Settings(home=tmp_path / "new"), spare=2**63)}
    assert found["disk"].state == "wrong" and "Free some space" in found["disk"].advice
    assert found["folder"].state == "ok" and "made by the first run" in found["folder"].value


def test_a_server_that_does_not_answer_is_wrong(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, registry={"tracking_uri": "http://me:secret@127.0.0.1:9"})
    (finding, *_) = tracking(settings)
    assert finding.state == "wrong" and "mlflow server" in finding.advice and "secret" not in finding.value


def test_the_holder_of_the_accelerator_is_named(tmp_path: Path) -> None:
    device = f"test-{tmp_path.parent.name}-{tmp_path.name}"
    code = (
        "import sys\nfrom dspy_toolkit.lm.models.lease import acquire\n"
        f"lease = acquire({device!r}, 0)\nprint('held', flush=True)\nsys.stdin.read()"
    )
    settings = Settings(home=tmp_path)
    try:
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            (held,) = lease(settings, device)
            process.stdin.close()
        assert "held by" in held.value
        if Path("/proc/locks").exists():
            assert str(process.pid) in held.value or "another process" in held.value
        (free,) = lease(settings, device)
        assert free.value == f"{device} is free"
    finally:
        lease_path(device).rmdir()


@pytest.fixture
def broken_model(home: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The settings in force name a model whose every reply fails."""
    with own_engines():
        engine = FakeEngine(lambda request: EngineFailed("The GPU is gone. Run it again."))
        serve_engine(engine)
        monkeypatch.chdir(home.path())
        monkeypatch.setenv("DSPY_TOOLKIT_HOME", str(home.path()))
        monkeypatch.setenv("DSPY_TOOLKIT_LM__MODEL", engine.model)
        yield


def test_a_model_that_cannot_generate_is_a_finding_in_the_words_of_its_error(broken_model: None) -> None:
    found = list(examine(generate=True))
    assert all(isinstance(finding, Finding) for finding in found)
    assert found[-1] == Finding(
        subject="generation", name="reply", value="none", state="wrong", advice="The GPU is gone. Run it again."
    )
    assert "generation" not in {finding.subject for finding in examine()}


def test_the_caller_has_other_words_for_an_error_or_none_and_then_it_is_raised(broken_model: None) -> None:
    *_, said = examine(generate=True, explain=lambda error: f"{type(root_error(error)).__name__} it is")
    assert said.advice == "EngineFailed it is"
    with pytest.raises(Exception) as raised:
        list(examine(generate=True, explain=lambda error: None))
    assert isinstance(root_error(raised.value), EngineFailed)
