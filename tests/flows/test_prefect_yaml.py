"""prefect.yaml: Prefect ignores keys that it does not know, so a typo would vanish."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.compile import DEPLOYMENT

ROOT = Path(__file__).parents[2]
KNOWN = {"name", "prefect-version", "build", "push", "pull", "deployments"}
OF_A_DEPLOYMENT = {
    "name",
    "description",
    "entrypoint",
    "parameters",
    "schedules",
    "work_pool",
    "tags",
    "concurrency_limit",
}
OF_A_SCHEDULE = {"cron", "timezone", "active", "interval", "rrule"}


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "prefect.yaml").read_text())


def test_every_key_is_one_that_prefect_reads(settings: dict[str, Any]) -> None:
    assert set(settings) <= KNOWN
    for deployment in settings["deployments"]:
        assert set(deployment) <= OF_A_DEPLOYMENT
        for schedule in deployment["schedules"]:
            assert set(schedule) <= OF_A_SCHEDULE


def test_the_working_folder_is_not_an_absolute_path(settings: dict[str, Any]) -> None:
    (step,) = settings["pull"]
    (arguments,) = step.values()
    assert not Path(arguments["directory"]).is_absolute()


def test_every_entrypoint_is_a_flow_that_takes_the_parameters(settings: dict[str, Any]) -> None:
    names = set()
    for deployment in settings["deployments"]:
        path, _, attribute = deployment["entrypoint"].partition(":")
        assert (ROOT / path).is_file()
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), attribute)
        assert set(deployment["parameters"]) <= set(inspect.signature(flow.fn).parameters)
        if deployment["parameters"] or deployment["schedules"]:
            flow.validate_parameters(deployment["parameters"])
        assert deployment["work_pool"]["name"] == "mlx"
        assert not Path(deployment["work_pool"]["job_variables"]["working_dir"]).is_absolute()
        names.add(f"{flow.name}/{deployment['name']}")
    assert names == {"optimize-program/nightly-router", "benchmark-machine/weekly-machine", DEPLOYMENT}


def test_the_schedule_is_a_cron_line(settings: dict[str, Any]) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    for deployment in settings["deployments"]:
        for schedule in deployment["schedules"]:
            CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
