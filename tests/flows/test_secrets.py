"""A secret is planted in every place that holds one; then a whole run and every kind of failure, and it is looked for everywhere."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_toolkit.errors import RegistryError
from dspy_toolkit.lm import connect
from dspy_toolkit.lm.litellm import patience
from dspy_toolkit.settings import Settings, load_settings
from tests.lm.openai_server import Body, Fault, OpenAIServer

PLANTED = "planted"
"""In every secret of this test."""
ROLES = ("lm", "reflection", "teacher", "judge")


def answer(body: Body) -> dict[str, str]:
    if "better_instruction" in str(body["messages"]):
        return {"better_instruction": "Say which."}
    asked = str(body["messages"][-1]["content"])
    return {"label": "number" if len(body["messages"]) > 2 and any(sign.isdigit() for sign in asked) else "person"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.setattr(patience, "FAILED_PAUSES", ())
    monkeypatch.setattr(patience, "BUSY_SECONDS", 0.0)
    with OpenAIServer(answer) as server:
        yield server


@pytest.fixture
def planted(playground: Any, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a secret in each place, from the file and the environment."""
    of_roles = "\n".join(
        f'[{role}]\nmodel = "openai/{role}"\napi_base = "{server.address}"\napi_key = "{PLANTED}-{role}"\ntimeout = 20\n'
        for role in ROLES
    )
    of_projects = (
        f"[projects.questions]\nlocation = '{playground.location}'\n"
        f'[projects.other.lm]\napi_key = "{PLANTED}-other"\n'
        f'[projects.other.registry]\ntracking_uri = "postgresql://me:{PLANTED}-other-password@127.0.0.1/mlflow"\n'
    )
    (tmp_path / "dspy-toolkit.toml").write_text(of_roles + of_projects)
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "DSPY_TOOLKIT_LM__MODEL": "openai/lm",  # the playground's is another
        "DSPY_TOOLKIT_JUDGE__API_KEY": f"{PLANTED}-judge-of-the-environment",
        "OPENAI_API_KEY": f"{PLANTED}-environment",
        "OTHER_API_KEY": f"{PLANTED}-other-environment",
    }.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def leaks(folder: Path, word: str = PLANTED) -> list[str]:
    """The files under `folder` that hold `word`, tables unpacked."""
    import pandas as pd

    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data += pd.read_parquet(io.BytesIO(data)).to_csv().encode()
        if word.encode() in data:
            found.append(str(path.relative_to(folder)))
    return found


def everything_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Let all that have a part in a call log all that they can."""
    for logger in (None, "dspy_toolkit", "LiteLLM", "openai", "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger)


def prefects_folder() -> Path:
    from prefect.settings import get_current_settings

    address = get_current_settings().server.database.connection_url
    assert address is not None
    return Path(address.get_secret_value().partition("///")[2]).parent


@pytest.mark.usefixtures("prefect_server")
def test_a_whole_run_leaves_none_behind(
    planted: Settings,
    server: OpenAIServer,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from prefect.logging.handlers import APILogWorker

    from flows.optimize_program import optimize_program

    everything_logged(caplog)
    decision = optimize_program("questions", optimizer="labelled", budget="40")
    assert decision.outcome
    assert {f"Bearer {PLANTED}-{role}" for role in ("lm", "reflection")} <= {
        seen.authorization for seen in server.received
    }
    # Then one that fails, at a server that repeats the key.
    server.always = Fault(401, f"Incorrect API key: {server.received[0].authorization}")
    planted.path("cache").rename(planted.path("cache before"))
    with pytest.raises(Exception, match=r"Incorrect API key: Bearer \*\*\*"):
        optimize_program("questions", optimizer="random", budget="120")
    APILogWorker.drain_all(
        timeout=20
    )  # Prefect's log of a run, tracebacks and all, goes into its database a little later
    assert leaks(planted.path()) == leaks(prefects_folder()) == []
    assert leaks(prefects_folder(), "Bearer ***"), "the log is there"
    assert leaks(planted.path(), "person") and leaks(prefects_folder(), "optimize questions"), "what is there is found"
    said = capfd.readouterr()
    assert "Bearer ***" in caplog.text and "Traceback" in caplog.text, "what is there is found"
    assert PLANTED not in said.out + said.err + caplog.text


@pytest.mark.parametrize("dump", [repr, str, vars, Settings.model_dump, Settings.model_dump_json])
def test_settings_are_printed_without(planted: Settings, dump: Callable[[Settings], Any]) -> None:
    for settings in (planted, planted.for_project("other")):
        assert PLANTED not in repr(dump(settings))
    assert "other-password" in planted.for_project("other").tracking_uri


def test_neither_are_a_models_state_and_a_programs(planted: Settings) -> None:
    connection = connect(planted)
    program = dspy.Predict("text -> label")
    program.lm = connection.judge
    for shown in (repr(connection), str(connection.lm.dump_state()), str(program.dump_state()), repr(connection.judge)):
        assert PLANTED not in shown


def secret_in(server: OpenAIServer, role: str) -> str:
    return f"Bearer {PLANTED}-judge-of-the-environment" if role == "judge" else f"Bearer {PLANTED}-{role}"


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500, 503])
def test_no_failure_says_one(
    planted: Settings,
    server: OpenAIServer,
    status: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from dspy_toolkit.cli.boundary import boundary

    everything_logged(caplog)
    connection = connect(planted)
    for role, lm in zip(
        ROLES, (connection.lm, connection.reflection, connection.teacher, connection.judge), strict=True
    ):
        message = f"no: {secret_in(server, role)}, {PLANTED}-environment"
        server.always = Fault(status, message, raw=message.encode() if status == 200 else None)
        with pytest.raises(SystemExit), boundary():
            try:
                lm(f"{role} {status}")
            except Exception:
                logging.getLogger("somebody").exception("Somebody logs the whole traceback.")
                raise
        assert server.received[-1].authorization == secret_in(server, role)
    said = capfd.readouterr()
    assert said.err.count("Error: ") == len(ROLES)
    assert PLANTED not in said.out + said.err + caplog.text
    assert leaks(planted.path()) == []


def test_no_setting_that_is_wrong_says_one(planted: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dspy_toolkit.errors import SettingsError

    for name, value in {
        "LM__API_BASE": f"http://me:{PLANTED}-x@host/v1",
        "LM__API_KEY": f'{{"a": "{PLANTED}-x"}}',
        "LM__API_KAY": f"{PLANTED}-x",
        "REGISTRY": f"{PLANTED}-x",
        "PROJECTS": f'{{"a": {{"lm": {{"api_kay": "{PLANTED}-x"}}}}}}',
    }.items():
        with monkeypatch.context() as wrong:
            wrong.setenv(f"DSPY_TOOLKIT_{name}", value)
            try:
                shown = repr(load_settings())
            except SettingsError as error:
                shown = f"{error!r} {error}"
            assert PLANTED not in shown, name


def test_no_registry_that_is_not_there_says_its_password(planted: Settings) -> None:
    from dspy_toolkit.registry import list_projects

    for address in ("http://me:{}@127.0.0.1:9", "postgresql://me:{}@127.0.0.1:9/x", "nosuch://me:{}@host/x"):
        settings = load_settings(registry={"tracking_uri": address.format(f"{PLANTED}-password")})
        with pytest.raises(RegistryError) as caught:
            list_projects(settings)
        assert PLANTED not in f"{caught.value!r} {caught.value}"
