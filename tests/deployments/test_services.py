"""Processes that are started, found again and stopped; nothing else is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deployments.bootstrap import USED, check_ports, places_of, services_of
from deployments.places import MARK, Places, Ports
from deployments.services import Service, end_all, marked
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.settings import Settings

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", child.pid, flush=True)
time.sleep(600)
"""


def service(folder: Path, code: str) -> Service:
    log = folder / "it.log"
    return Service("it", (sys.executable, "-c", code), "", lambda: "ready" in log.read_text(), folder)


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_service_is_started_once_and_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.services.STOP_SECONDS", 1.0)
    it = service(tmp_path, STUBBORN)
    it.start({MARK: str(tmp_path)}, tmp_path)
    it.wait(time.monotonic() + 60)
    first = it.process()
    assert first is not None
    it.start({}, tmp_path)
    assert it.process() == first, "it ran already"
    child = int(it.log.read_text().split()[1])
    assert {each.pid for each in marked(tmp_path)} == {first.pid, child}
    assert it.stop()
    assert not it.stop()
    assert not runs(child) and it.process() is None


def test_somebody_else_who_has_the_id_by_now_is_left_alone(tmp_path: Path) -> None:
    it = service(tmp_path, "")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        it.file.write_text(json.dumps({"pid": other.pid, "started": psutil.Process(other.pid).create_time() - 60}))
        assert it.process() is None and not it.stop()
        assert other.poll() is None
        other.communicate(b"\n")


def test_one_that_ends_says_its_last_words(tmp_path: Path) -> None:
    it = service(tmp_path, "print('no such thing'); raise SystemExit(3)")
    it.start({}, tmp_path)
    with pytest.raises(SettingsError, match=r"it has ended[\s\S]*no such thing[\s\S]*it.log"):
        it.wait(time.monotonic() + 60)


def test_only_what_carries_this_homes_mark_is_found(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, MARK: "x"}
    ) as other:
        assert marked(tmp_path) == []
        end_all([psutil.Process(other.pid)])
        assert not runs(other.pid)


def places(home: Settings, clone: Path, **ports: int) -> Places:
    return Places(clone, home, Ports(**ports))


def test_the_client_file_is_private_and_nobody_elses_is_touched(home: Settings, tmp_path: Path) -> None:
    import tomllib

    clone = tmp_path / "clone"
    clone.mkdir()
    made = places(home, clone, server=14444)
    made.write_client_file()
    file = clone / "prefect.toml"
    said = tomllib.loads(file.read_text())
    assert said["api"] == {"url": "http://127.0.0.1:14444/api", "auth_string": made.password}
    assert not file.stat().st_mode & 0o077
    assert places(home, clone).password == made.password, "drawn once for a home"
    assert made.password not in repr(made)
    made.remove_client_file()
    assert not file.exists()
    file.write_text("[api]\nurl = 'https://elsewhere.example/api'\n")
    with pytest.raises(SettingsError, match="Move it away"):
        made.write_client_file()
    made.remove_client_file()
    assert "elsewhere" in file.read_text()


def test_a_port_that_is_taken_is_one_clear_error(home: Settings, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        made = places(home, tmp_path, pages=port, server=1, mlflow=1, serving=1)
        with pytest.raises(SettingsError, match=rf"Port {port} .*--pages-port {port + 1}"):
            check_ports(made, services_of(made))


def test_an_mlflow_server_that_the_settings_name_is_not_started(home: Settings, tmp_path: Path) -> None:
    from pydantic import SecretStr

    served = home.registry.model_copy(update={"tracking_uri": SecretStr("http://127.0.0.1:5999")})
    made = places(home.model_copy(update={"registry": served}), tmp_path)
    assert "mlflow" not in services_of(made) and made.mlflow == "http://127.0.0.1:5999"
    assert "mlflow" in services_of(places(home, tmp_path))


def test_servings_port_is_the_settings_unless_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSPY_TOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("deployments.bootstrap.os.environ", dict(os.environ))
    monkeypatch.setattr("deployments.bootstrap.os.umask", lambda _: None)
    (tmp_path / "dspy-toolkit.toml").write_text("[serving]\nport = 8123\n")
    assert vars(places_of({}).ports) == {"server": 4200, "mlflow": 5000, "serving": 8123, "pages": 8090}
    assert places_of({"server": 4300, "serving": 8124}).ports.serving == 8124
    again = places_of({})
    assert (again.ports.server, again.ports.serving) == (4300, 8124), "as the last one was told"
    (again.folder / USED).write_text(json.dumps(vars(again.ports)))
    with pytest.raises(SettingsError, match="other ports"):
        places_of({"pages": 8091})
    (tmp_path / "dspy-toolkit.toml").write_text("[serving]\nport = 8125\n")
    assert places_of().ports == again.ports, "where it is up"
