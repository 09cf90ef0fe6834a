"""`dspy-toolkit deploy`: what it refuses before anything is asked or written. That it deploys is in tests/system/test_make_up.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from dspy_toolkit.errors import ProjectError, SettingsError
from dspy_toolkit.settings import Settings

deploy = importlib.import_module("dspy_toolkit.cli.deploy")  # the command has the module's name

NAMED: dict[str, Any] = {
    "project": "router",
    "cron": "0 3 * * *",
    "timezone": "UTC",
    "budget": "",
    "optimizer": "",
    "name": "",
}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "clone"
    (folder / "flows").mkdir(parents=True)
    (folder / "flows/optimize_program.py").touch()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    return folder


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"project": "rooter"}, ProjectError, "Did you mean router"),
        ({"project": "./somewhere.py"}, ProjectError, "dspy-toolkit.toml"),
        ({"timezone": "Europe/Berln"}, SettingsError, "Did you mean Europe/Berlin"),
        ({"optimizer": "mirpo"}, SettingsError, "mipro"),
        ({"budget": "huge"}, SettingsError, "huge"),
    ],
)
def test_the_wrong_thing_typed_is_one_clear_error(
    home: Settings, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        deploy.make_entry(home, **(NAMED | changes))


def test_it_needs_a_clone_and_a_server(
    home: Settings, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = deploy.make_entry(home, **NAMED)
    with pytest.raises(SettingsError, match="clone of dspy_toolkit"):
        deploy.add_entry(home, entry, tmp_path)
    for name in deploy.SERVER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="`make up`"):
        deploy.add_entry(home, entry, clone)


def test_entries_are_kept_by_name_and_what_prefect_refuses_is_not(
    home: Settings, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def prefect(folder: Path, *command: str) -> str:
        asked.append(command)
        proposed = yaml.safe_load(Path(command[2]).read_text())
        if any(schedule["cron"] == "bad" for each in proposed["deployments"] for schedule in each["schedules"]):
            raise SettingsError("Prefect refuses it")
        return ""

    monkeypatch.setattr(deploy, "ask_prefect", prefect)
    assert deploy.add_entry(home, deploy.make_entry(home, **NAMED), clone) == "optimize-program/nightly-router"
    deploy.add_entry(home, deploy.make_entry(home, **NAMED | {"cron": ""}), clone)
    deploy.add_entry(home, deploy.make_entry(home, **NAMED | {"cron": "0 4 * * *", "budget": "15m"}), clone)
    before = home.path(deploy.FILE).read_bytes()
    with pytest.raises(SettingsError, match="refuses"):
        deploy.add_entry(home, deploy.make_entry(home, **NAMED | {"cron": "bad"}), clone)
    assert home.path(deploy.FILE).read_bytes() == before and b"&" not in before, "no anchors"
    kept = {each["name"]: each for each in deploy.read_entries(home)}
    assert set(kept) == {"nightly-router", "on-demand-router"}
    assert kept["nightly-router"]["schedules"][0]["cron"] == "0 4 * * *"
    assert not list(home.path().glob("proposed-*"))
    assert asked[0][-1] == "optimize-program/nightly-router"


def test_a_file_that_cannot_be_read_is_one_clear_error(home: Settings) -> None:
    home.path(deploy.FILE).write_text("deployments: 3\n")
    with pytest.raises(SettingsError, match="move it away"):
        deploy.read_entries(home)
