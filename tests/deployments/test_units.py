"""The units, the image, the composition and the table of deployments can be read, and name what is there.

compose.yaml and the Dockerfile are read strictly: a key, an instruction or a flag that is not known here is refused, and one that is
new must be written down here first. What is written into them is held against the programs that will read it: Prefect's and our
own settings, and the commands' own options.

No container engine and no systemd run them here; tests/deployments/test_bootstrap_composition.py starts the composition's commands
as processes.
"""

from __future__ import annotations

import json
import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from deployments.bootstrap import ORDER, RUNS_AT_ONCE, app, services_of
from deployments.places import MARK, POOL, Places, Ports
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
HERE = ROOT / "deployments"
INSIDE = "/home/toolkit/dspy_toolkit"
"""The clone in the image."""


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
    assert {"up", "down", "status", "run", "register"} <= set(app)
    assert set(services_of(Places(tmp_path, home, Ports()))) <= set(ORDER)


# The composition

Words = Annotated[list[str], Field(min_length=1)]
Duration = Annotated[str, StringConstraints(pattern=r"^\d+(ms|s|m|h)$")]
LocalPort = Annotated[str, StringConstraints(pattern=r"^127\.0\.0\.1:\d+:\d+$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Build(Strict):
    context: str
    dockerfile: str
    args: dict[str, str] = {}


class HealthCheck(Strict):
    test: Words
    interval: Duration
    retries: int


class Dependency(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]
    restart: bool = False


class GivenConfig(Strict):
    source: str
    target: str


class ComposeService(Strict):
    """The keys of a service that we use, as compose's specification has them."""

    build: Build | None = None
    image: str | None = None
    command: Words | None = None
    environment: dict[str, str | None]
    volumes: list[str]
    ports: list[LocalPort] = []
    configs: list[GivenConfig] = []
    depends_on: dict[str, Dependency] = {}
    healthcheck: HealthCheck | None = None
    restart: Literal["no", "always", "on-failure", "unless-stopped"]
    hostname: str | None = None
    network_mode: str | None = None
    stop_grace_period: Duration | None = None

    @model_validator(mode="after")
    def _one_image(self) -> ComposeService:
        if (self.build is None) == (self.image is None):
            raise ValueError("give an image, or how it is built")
        if self.network_mode is not None and (self.hostname or self.ports):
            raise ValueError("whoever shares a network has neither a name nor ports of its own")
        return self


class Config(Strict):
    content: str


class Composition(Strict):
    """compose.yaml without its fragments, `x-…`."""

    name: str
    services: dict[str, ComposeService]
    configs: dict[str, Config]
    volumes: dict[str, None]


class OneOfEach(yaml.SafeLoader):
    """Refuses a key that is there twice, as compose does; PyYAML takes the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"{', '.join(twice)} is there twice")
        return super().construct_mapping(node, deep)


def read_composition(text: str) -> Composition:
    """As compose reads it: fragments are used and gone."""
    content = yaml.load(text, OneOfEach)
    return Composition.model_validate({key: value for key, value in content.items() if not key.startswith("x-")})


def composition() -> Composition:
    return read_composition((HERE / "compose.yaml").read_text())


def ours() -> dict[str, ComposeService]:
    """The services that run our image."""
    return {name: service for name, service in composition().services.items() if service.build is not None}


def test_the_composition_names_what_it_has_and_holds_no_password() -> None:
    read = composition()
    assert read.services.keys() == {"postgres", "server", "mlflow", "register", "pages", "worker"}
    for name, service in read.services.items():
        for other, how in service.depends_on.items():
            if how.condition == "service_healthy":
                assert read.services[other].healthcheck is not None, (name, other)
            if how.condition == "service_completed_successfully":
                assert read.services[other].restart == "no", "else it is never over"
        for given in service.configs:
            assert given.source in read.configs and given.target.startswith("/")
        for volume in service.volumes:
            assert volume.split(":")[0] in read.volumes, name
        if service.network_mode is not None:
            assert service.network_mode.removeprefix("service:") in service.depends_on
        for key, value in service.environment.items():
            if re.search("PASSWORD|AUTH", key):
                assert re.fullmatch(r"\$\{\w+:\?\}", value or ""), key
            elif "@" in (value or ""):
                assert "toolkit:${POSTGRES_PASSWORD:?}@postgres:5432/" in str(value), key
    for service in ours().values():
        assert service.build is not None
        assert (ROOT / service.build.dockerfile).is_file() and (HERE / service.build.context).samefile(ROOT)
    # Each variable that somebody may set is explained at the top.
    text = (HERE / "compose.yaml").read_text()
    head = text.partition("\nname:")[0]
    asked = set(re.findall(r"\$\{(\w+)", text))
    passed_on = {
        key for service in read.services.values() for key, value in service.environment.items() if value is None
    }
    assert asked | passed_on == set(re.findall(r"\b[A-Z]+(?:_+[A-Z]+)+\b", head))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("services:\n  postgres", "service:\n  postgres"),
        ("    command:\n", "    comand:\n"),
        ("healthcheck:", "health_check:"),
        ("depends_on:", "depend_on:"),
        ("condition: service_healthy", "condition: healthy"),
        ("interval: 5s", "intervall: 5s"),
        ("retries: 24", 'retries: "24"'),
        ("restart: unless-stopped", "restart: unless-stoped"),
        ('restart: "no"', "restart: no"),
        ("dockerfile: ", "docker_file: "),
        ("stop_grace_period: 1m", "stop_grace_period: 1 minute"),
        ("network_mode: service:server", "network_mode: service:server\n    hostname: pages"),
        ('"127.0.0.1:5000:5000"', '"5000:5000"'),
        ('PREFECT_FLOWS_HEARTBEAT_FREQUENCY: "60"', "PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 60"),
        ("    content: CREATE", "    contents: CREATE"),
        ("volumes:\n  home:", "volumes:\n  home: local"),
        ("    hostname: toolkit\n    stop", "    hostname: toolkit\n    hostname: worker\n    stop"),
    ],
)
def test_a_typo_in_the_composition_is_seen(right: str, wrong: str) -> None:
    text = (HERE / "compose.yaml").read_text()
    assert right in text
    with pytest.raises(ValueError, match=r"validation error|is there twice"):
        read_composition(text.replace(right, wrong, 1))


def values(service: ComposeService) -> dict[str, str]:
    """A service's environment, with words in place of passwords, and something for every name that is passed on."""
    given = {
        "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK": "remote-file-system/shared",
        "DSPY_TOOLKIT_ALERTS__TARGETS": '["json://x"]',
    }
    return {
        name: re.sub(r"\$\{\w+:\?\}", "a:word", given.get(name, "s3://x") if value is None else value)
        for name, value in service.environment.items()
    }


@pytest.mark.parametrize("name", ["server", "mlflow", "register", "pages", "worker"])
def test_every_service_of_the_composition_has_the_environment_that_make_up_gives(
    name: str, home: Settings, tmp_path: Path
) -> None:
    given = values(ours()[name])
    made = Places(tmp_path, home, Ports()).environment
    image = next(words for kind, _, words in instructions(dockerfile()) if kind == "ENV")
    given |= dict(word.split("=", 1) for word in image)
    # What is on the command line there, or is the place of the clone and its home.
    elsewhere = {MARK, "DSPY_TOOLKIT_HOME", "PREFECT_SERVER_API_HOST", "PREFECT_SERVER_API_PORT"}
    assert made.keys() - elsewhere <= given.keys()
    secrets = {key for key in made if "AUTH" in key}
    for key in made.keys() - elsewhere - secrets - {"PREFECT_API_URL", "PREFECT_HOME"}:
        assert given[key] == made[key], key
    assert given["PREFECT_HOME"] == f"{INSIDE}/.dspy-toolkit/prefect"
    assert given["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] == f"{given['PREFECT_HOME']}/storage"
    assert given["PREFECT_API_URL"] == (made["PREFECT_API_URL"] if name == "server" else "http://server:4200/api")


def test_prefect_and_we_know_every_variable_of_the_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect.settings

    given = {name: value for service in ours().values() for name, value in values(service).items()}
    mine = {name for name in given if name.startswith("PREFECT_")}
    assert not hasattr(prefect.settings, "PREFECT_SERVER_API_AUTH_STRNG")
    assert len(mine) > 15 and [name for name in mine if not hasattr(prefect.settings, name)] == []
    for name in [key for key in os.environ if key.startswith("DSPY_TOOLKIT_")]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.store.address == "s3://x" and settings.tracking_uri == "http://mlflow:5000"
    assert len(settings.alerts.targets) == 1
    monkeypatch.setenv("DSPY_TOOLKIT_STORE__ADRESS", "s3://x")
    with pytest.raises(SettingsError, match="adress"):
        load_settings()


def test_the_commands_of_the_composition_are_those_of_make_up(home: Settings, tmp_path: Path) -> None:
    there = {name: list(service.command or ()) for name, service in ours().items()}
    made = {
        name: " ".join(service.command[1:]) for name, service in services_of(Places(tmp_path, home, Ports())).items()
    }
    assert there["server"] == ["prefect", "server", "start", "--host", "0.0.0.0"]
    assert made["server"].startswith("-m prefect server start --host ")
    assert there["worker"] == ["prefect", "worker", "start", "--pool", POOL, "--limit", str(RUNS_AT_ONCE)]
    assert made["worker"].startswith(f"-m prefect worker start --pool {POOL} ")
    assert ["python", *shlex.split(made["pages"])] == there["pages"]
    assert there["register"] == ["python", "-m", "deployments.bootstrap", "register"]
    assert {name for name, service in ours().items() if service.hostname} == {"register", "worker"}
    assert len({service.hostname for service in ours().values() if service.hostname}) == 1, "one limit for the host"
    # The database that is made is the one that MLflow is given, and the one that the health check asks.
    read = composition()
    [sql] = [config.content for config in read.configs.values()]
    made_too = re.fullmatch(r"CREATE DATABASE (\w+);", sql)
    assert made_too is not None
    assert (read.services["mlflow"].environment["MLFLOW_BACKEND_STORE_URI"] or "").endswith(f"/{made_too[1]}")
    check = read.services["postgres"].healthcheck
    assert check is not None and check.test[-1] == made_too[1]


@pytest.mark.parametrize("name", ["server", "mlflow", "worker"])
def test_the_commands_of_the_composition_take_their_options(name: str) -> None:
    words = ours()[name].command or []
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    asked = [word for word in words[: 3 if words[0] == "prefect" else 2] if not word.startswith("--")]
    done = subprocess.run(
        [sys.executable, "-m", *asked, "--help"], capture_output=True, text=True, check=True,
        env=os.environ | {"COLUMNS": "200", "DO_NOT_TRACK": "1"},
    )  # fmt: skip
    known = re.findall(r"--[\w-]+", done.stdout)
    assert len(options) >= 1 and set(options) <= set(known), done.stdout


# The image

KNOWN: Mapping[str, set[str]] = {
    "ARG": set(),
    "CMD": set(),
    "COPY": {"chown", "chmod", "from", "link", "parents", "exclude"},
    "ENV": set(),
    "FROM": {"platform"},
    "RUN": {"mount", "network", "security"},
    "USER": set(),
    "WORKDIR": set(),
}
"""Instruction → its flags, as Dockerfile's reference has them, of those that are used."""


class Instruction(NamedTuple):
    """One of a Dockerfile."""

    kind: str
    flags: dict[str, str]
    words: list[str]


def dockerfile() -> str:
    return (HERE / "Dockerfile").read_text()


def instructions(text: str) -> list[Instruction]:
    """Those of a Dockerfile. Raises ValueError where an instruction or a flag is not known here."""
    found = []
    lines = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        kind, _, rest = line.partition(" ")
        if kind not in KNOWN:
            raise ValueError(f"there is no instruction {kind!r}")
        flags = {}
        while match := re.match(r"\s*--(\w+)(?:=(\S+))?\s", rest):
            if match[1] not in KNOWN[kind] or not match[2]:
                raise ValueError(f"{kind} has no flag {match[0].strip()!r}")
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        words = json.loads(rest) if rest.lstrip().startswith("[") else shlex.split(rest)
        if not words:
            raise ValueError(f"{kind} says nothing")
        found.append(Instruction(kind, flags, words))
    return found


def of(kind: str) -> list[Instruction]:
    return [each for each in instructions(dockerfile()) if each.kind == kind]


def test_the_image_is_made_of_files_that_are_there() -> None:
    found = instructions(dockerfile())
    assert found[0].kind == "FROM" and found[-1].kind == "CMD" and len(of("FROM")) == len(of("CMD")) == 1
    copied: set[str] = set()
    for _, flags, (*sources, destination) in of("COPY"):
        assert flags == {"chown": "toolkit"}
        for source in sources:
            there = list(ROOT.glob(source))
            assert there and all(path.is_relative_to(ROOT) and path != ROOT for path in there), source
            # A folder's content is copied: it must be told the folder's name.
            folder = Path(source) if there[0].is_dir() else Path(source).parent
            assert ROOT / destination == ROOT / folder and destination.endswith("/") != there[0].is_dir()
            copied |= {str(path.relative_to(ROOT)) for path in there}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    code = set(project["tool"]["importlinter"]["root_packages"])
    code = code - {"deployments"} | {str(path.relative_to(ROOT)) for path in HERE.glob("*.py")}
    assert code | {"prefect.yaml", "pyproject.toml", project["project"]["readme"]} <= copied
    for link in (ROOT / "dspy_toolkit").rglob("*"):
        if link.is_symlink():
            assert link.resolve().relative_to(ROOT).parts[0] in copied, link
    assert not {name for name in copied if name.startswith(".")}, "an environment and a home of its own"
    assert "deployments" not in copied, "compose.yaml has its passwords there, in .env"


def test_the_image_uses_what_it_has_made() -> None:
    [user], [work], [packages] = (of(kind)[0].words for kind in ("USER", "WORKDIR", "ARG"))
    done = [" ".join(each.words) for each in of("RUN")]
    assert any(f"useradd --create-home {user} " in f"{line} " for line in done)
    assert any(f"install --directory --owner={user} --group={user} {work}" in line for line in done)
    assert work == INSIDE
    for service in ours().values():
        assert service.volumes == [f"home:{work}/.dspy-toolkit"]
        assert service.build is not None and set(service.build.args) == {packages.partition("=")[0]}
    assert any(f"${packages.partition('=')[0]}" in line for line in done)
    environment = dict(word.split("=", 1) for word in of("ENV")[0].words)
    assert environment["PATH"] == f"{work}/.venv/bin:$PATH"
    assert of("CMD")[0].words == ["python", "-m", "deployments.bootstrap", "--help"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("COPY --chown=toolkit data", "COPPY --chown=toolkit data"),
        ("COPY --chown=toolkit data", "COPY --chwon=toolkit data"),
        ("COPY --chown=toolkit data", "COPY --chown data"),
        ("USER toolkit", "user toolkit"),
        ("RUN python", "python"),
        ('CMD ["python"', 'CMD ["python'),
        ("WORKDIR /home/toolkit/dspy_toolkit", "WORKDIR"),
    ],
)
def test_a_typo_in_the_dockerfile_is_seen(right: str, wrong: str) -> None:
    assert right in dockerfile()
    with pytest.raises(ValueError, match=r"."):
        instructions(dockerfile().replace(right, wrong, 1))


# The documentation's table

DAYS = ("Sundays", "Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays")


def when(entry: dict[str, Any]) -> str:
    """When a deployment of prefect.yaml runs, in words."""
    if not entry["schedules"]:
        return "never by itself"
    [schedule] = entry["schedules"]
    assert schedule["timezone"] == "UTC"
    minute, hour, month_day, month, day = schedule["cron"].split()
    assert (month_day, month) == ("*", "*")
    if hour == "*":
        said = f"every hour, at {minute} past"
    else:
        said = f"{'every night' if day == '*' else DAYS[int(day)]}, {int(hour):02}:{int(minute):02}"
    return said if schedule["active"] else f"{said}; off until you switch it on"


def test_the_table_of_deployments_has_all_of_them_and_says_when_they_run() -> None:
    text = (ROOT / "docs/deployments.md").read_text()
    section = text.partition("## The deployments\n")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `([\w-]+/[\w-]+)` \| (.*?) \|", section, re.MULTILINE)
    entries = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    # A flow is called as its function, with hyphens; tests/flows/test_prefect_yaml.py asks the flows themselves.
    there = {f"{each['entrypoint'].partition(':')[2].replace('_', '-')}/{each['name']}": when(each) for each in entries}
    assert len(told) == len(entries) and dict(told) == there
