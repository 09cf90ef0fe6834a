"""prefect.yaml: Prefect ignores keys that it does not know, so a typo would vanish. Here each is read strictly, then deployed."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from zoneinfo import available_timezones

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from dspy_toolkit.cli.deploy import make_entry, whole
from dspy_toolkit.settings import load_settings
from tasks.compile import DEPLOYMENT
from tasks.watching import CHALLENGER

ROOT = Path(__file__).parents[2]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Schedule(Strict):
    cron: str
    timezone: str
    active: bool


class Limit(Strict):
    limit: int
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]


class JobVariables(Strict):
    working_dir: Literal["."]


class Pool(Strict):
    name: Literal["mlx"]
    job_variables: JobVariables


class Deployment(Strict):
    name: str
    description: str
    entrypoint: str
    tags: list[str]
    parameters: dict[str, Any]
    schedules: list[Schedule]
    concurrency_limit: Limit | None = None
    work_pool: Pool


class PrefectFile(Strict):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)
    name: str
    pull: list[dict[str, dict[str, str]]]
    deployments: list[Deployment]
    definitions: dict[str, Any] = {}


def read(text: str) -> PrefectFile:
    content = yaml.safe_load(text)
    said = content.pop("prefect-version", version("prefect"))
    assert said == version("prefect"), "the version that is installed"
    return PrefectFile.model_validate(content)


@pytest.fixture(scope="module")
def file() -> PrefectFile:
    return read((ROOT / "prefect.yaml").read_text())


def flow_of(deployment: Deployment) -> Any:
    path, _, attribute = deployment.entrypoint.partition(":")
    assert (ROOT / path).is_file()
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), attribute)


def test_the_working_folder_is_not_an_absolute_path(file: PrefectFile) -> None:
    assert file.pull == [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]


def test_every_entrypoint_is_a_flow_that_takes_the_parameters(file: PrefectFile) -> None:
    names = [f"{flow_of(each).name}/{each.name}" for each in file.deployments]
    assert len(names) == len(set(names))
    for deployment in file.deployments:
        flow = flow_of(deployment)
        assert set(deployment.parameters) <= set(inspect.signature(flow.fn).parameters)
        if deployment.parameters or deployment.schedules:
            flow.validate_parameters(deployment.parameters)
    expected = {
        "compare-optimizers/weekly",
        "monitor-program/hourly",
        "benchmark-machine/weekly",
        "measure-landscape/on-demand",
    }
    assert expected | {DEPLOYMENT} <= set(names)
    # Each built-in project has its nights, which a fall of its program also starts at once.
    projects = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["dspy_toolkit.projects"]
    assert {CHALLENGER.format(project=project) for project in projects} <= set(names)


def test_every_flow_has_a_deployment(file: PrefectFile) -> None:
    from prefect import Flow

    there = {flow_of(each).name for each in file.deployments}
    for path in (ROOT / "flows").glob("*.py"):
        module = importlib.import_module(f"flows.{path.stem}") if path.stem != "__init__" else None
        own = [each for each in vars(module).values() if isinstance(each, Flow)] if module else []
        assert {each.name for each in own} <= there, path


def test_schedules_are_cron_lines_of_a_known_zone_and_wait_for_each_other(file: PrefectFile) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    for deployment in file.deployments:
        for schedule in deployment.schedules:
            CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
            assert schedule.timezone in available_timezones()
            assert deployment.concurrency_limit == Limit(limit=1, collision_strategy="ENQUEUE")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("pull:", "pul:"),
        ("schedules:", "shedules:"),
        ("- cron:", "- corn:"),
        ("timezone:", "timezon:"),
        ("collision_strategy:", "colision_strategy:"),
        ("tags:", "tag:"),
        ("working_dir:", "workdir:"),
    ],
)
def test_a_typo_is_seen(right: str, wrong: str) -> None:
    text = (ROOT / "prefect.yaml").read_text()
    assert right in text
    with pytest.raises(ValueError, match="Extra inputs"):
        read(text.replace(right, wrong))


def test_what_the_command_writes_is_of_the_same_form(playground: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_TOOLKIT_PROJECTS__QUESTIONS__LOCATION", playground.location)
    entry = make_entry(load_settings(), "questions", "0 3 * * *", "Europe/Berlin", "15m", "mipro", "")
    [deployment] = read(yaml.safe_dump(whole([entry]))).deployments
    assert deployment.name == "nightly-questions" and deployment.parameters["budget"] == "15m"
    flow_of(deployment).validate_parameters(deployment.parameters)


@pytest.mark.usefixtures("prefect_server")
def test_all_of_it_is_deployed_to_a_real_server(
    file: PrefectFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    from deployments.registering import make_pool
    from dspy_toolkit.cli.deploy import ask_prefect

    with get_client(sync_client=True) as client:
        make_pool(client)
        monkeypatch.setenv("PREFECT_API_URL", str(get_current_settings().api.url or client.api_url))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        ask_prefect(ROOT, "deploy", "--all")
        for wanted in file.deployments:
            made = client.read_deployment_by_name(f"{flow_of(wanted).name}/{wanted.name}")
            assert made.entrypoint == wanted.entrypoint and set(made.tags) == set(wanted.tags)
            assert made.parameters == wanted.parameters and made.enforce_parameter_schema
            there = [(each.schedule.cron, each.schedule.timezone, each.active) for each in made.schedules]
            assert there == [(each.cron, each.timezone, each.active) for each in wanted.schedules]
            limit, options, asked = made.global_concurrency_limit, made.concurrency_options, wanted.concurrency_limit
            assert (limit.limit if limit else None) == (asked and asked.limit)
            assert (options.collision_strategy if options else None) == (asked and asked.collision_strategy)
            assert made.work_pool_name is not None
            pool = client.read_work_pool(made.work_pool_name)
            assert (pool.name, pool.type) == (wanted.work_pool.name, "process")
            assert made.job_variables == wanted.work_pool.job_variables.model_dump()
            assert made.pull_steps == file.pull
        # A night that is off, as docs/deployments.md says that one switches it on.
        night, text = "optimize-program/nightly-lora", (ROOT / "prefect.yaml").read_text()
        assert [each.active for each in client.read_deployment_by_name(night).schedules] == [False]
        changed = tmp_path / "prefect.yaml"
        changed.write_text(text.replace("active: false", "active: true"))
        ask_prefect(ROOT, "deploy", "--prefect-file", str(changed), "--name", night)
        assert [each.active for each in client.read_deployment_by_name(night).schedules] == [True]
