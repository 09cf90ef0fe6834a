"""`dspy-toolkit deploy`: a project of the user's own as a deployment of the Prefect server that is in force.

Covered: writing the entry into `HOME/deployments.yaml`, which has the form of prefect.yaml, and having Prefect's own command
deploy it. An entry that Prefect refuses is not kept. `make up` deploys that file too.

Not covered: starting a server (`make up`), and Prefect itself, which the library does not import: it is asked as a command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dspy_toolkit.cli.options import Json
from dspy_toolkit.printable import json_text

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

FILE = "deployments.yaml"
FLOW = "flows/optimize_program.py"
POOL = {"name": "mlx", "job_variables": {"working_dir": "."}}
SERVER_VARIABLES = ("PREFECT_API_URL", "PREFECT_PROFILE")
SECONDS = 300.0
"""For Prefect's command, which imports the flow."""


def deploy(
    project: str,
    *,
    cron: Annotated[str, Parameter(show_default=False)] = "",
    timezone: str = "UTC",
    budget: Annotated[str, Parameter(show_default=False)] = "",
    optimizer: Annotated[str, Parameter(show_default=False)] = "",
    name: Annotated[str, Parameter(show_default=False)] = "",
    json: Json = False,
) -> None:
    """Deploy the optimization of a project, on a schedule or for starting by hand.

    In a clone, where the flows are. A server must be named: `make up` starts one here.

    Args:
        project: A name that this machine knows: installed, or given a location in dspy-toolkit.toml.
        cron: When it runs, such as "0 3 * * *"; only when it is asked for, if not given.
        timezone: Of the cron line, such as Europe/Berlin.
        budget: light, medium, heavy, LM calls, a time or dollars; the project's or the settings' by default.
        optimizer: The project's or the settings' by default.
        name: The deployment's name; nightly-PROJECT with a cron line, else on-demand-PROJECT.
        json: Print JSON, for scripts.
    """
    from dspy_toolkit.cli.boundary import show_log
    from dspy_toolkit.display.tables import console
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    show_log(settings)
    entry = make_entry(settings, project, cron, timezone, budget, optimizer, name)
    deployed = add_entry(settings, entry, Path.cwd())
    if json:
        print(json_text({"deployment": deployed, "cron": cron or None, "timezone": timezone}, indent=2))
        return
    console().print(
        f"{deployed} is deployed{f', and runs at {cron} ({timezone})' if cron else ''}. Start it now:\n"
        f"  prefect deployment run '{deployed}'",
        markup=False,
        highlight=False,
    )


def make_entry(
    settings: Settings, project: str, cron: str, timezone: str, budget: str, optimizer: str, name: str
) -> dict[str, Any]:
    """The entry of `HOME/deployments.yaml`.

    Raises:
        ProjectError: a worker would refuse the project.
        SettingsError: the budget, the optimizer or the time zone is none.
    """
    from typing import get_args
    from zoneinfo import available_timezones

    from dspy_toolkit.errors import SettingsError, nearest
    from dspy_toolkit.project import check_known, load_project
    from dspy_toolkit.settings import OptimizerName, parse_budget

    check_known(project, settings)
    title = load_project(project, settings).name
    if timezone not in available_timezones():
        raise SettingsError(
            f"{timezone!r} is no time zone.{nearest(timezone, _like(timezone))} Write one such as Europe/Berlin."
        )
    if optimizer and optimizer not in get_args(OptimizerName):
        raise SettingsError(f"{optimizer!r} is no optimizer.{nearest(optimizer, get_args(OptimizerName))}")
    parameters = {"project": project}
    if budget:
        try:
            parse_budget(budget)
        except ValueError as error:
            raise SettingsError(f"{error}.") from None
        parameters["budget"] = budget
    if optimizer:
        parameters["optimizer"] = optimizer
    return {
        "name": name or f"{'nightly' if cron else 'on-demand'}-{title}",
        "description": f"Optimize {title}, and promote the result only if it has proved to be better.",
        "entrypoint": f"{FLOW}:optimize_program",
        "tags": ["optimize", title],
        "parameters": parameters,
        "schedules": [{"cron": cron, "timezone": timezone, "active": True}] if cron else [],
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
        "work_pool": POOL,
    }


def add_entry(settings: Settings, entry: dict[str, Any], clone: Path) -> str:
    """Have Prefect deploy `entry`, then keep it in `HOME/deployments.yaml`, in place of one of the same name.

    Args:
        clone: the folder with the flows, where the worker runs too.

    Returns:
        `FLOW/NAME`, as Prefect calls it.

    Raises:
        SettingsError: `clone` is none, no server is named, or Prefect refuses the entry (the file is as it was).
    """
    import yaml

    from dspy_toolkit.durable import make_home, write_file
    from dspy_toolkit.errors import SettingsError
    from dspy_toolkit.locks import held

    if not (clone / FLOW).is_file():
        raise SettingsError(
            f"{clone} has no {FLOW}. Run this in a clone of dspy_toolkit, where the worker runs as well."
        )
    if not any(os.environ.get(name) for name in SERVER_VARIABLES) and not (clone / "prefect.toml").is_file():
        raise SettingsError("No Prefect server is named. `make up` starts one, or set PREFECT_API_URL.")
    file, deployed = settings.path(FILE), f"optimize-program/{entry['name']}"
    make_home(settings.path())
    with held(settings.path(f"{FILE}.lock")):
        kept = read_entries(settings)
        entries = [each for each in kept if each["name"] != entry["name"]] + [entry]
        text = yaml.safe_dump(whole(entries), sort_keys=False, allow_unicode=True).encode()
        # Prefect reads it first: what it refuses is not kept. Its command takes the file by its name.
        proposed = settings.path(f"proposed-{FILE}")
        write_file(proposed, text)
        try:
            ask_prefect(clone, "deploy", "--prefect-file", str(proposed), "--name", deployed)
        finally:
            proposed.unlink(missing_ok=True)
        write_file(file, text)
    return deployed


def read_entries(settings: Settings) -> list[dict[str, Any]]:
    """The entries of `HOME/deployments.yaml`; none where there is no such file.

    Raises:
        SettingsError: it cannot be read.
    """
    import yaml

    from dspy_toolkit.errors import SettingsError

    file = settings.path(FILE)
    if not file.exists():
        return []
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]
        if not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in found):
            raise TypeError("an entry has no name")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise SettingsError(f"{file} cannot be read: {error}. Correct it, or move it away.") from None
    return found


def whole(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A file of the form of prefect.yaml."""
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
    # Copies: YAML would write what two entries share as an anchor.
    return {"name": "dspy-toolkit", "pull": pull, "deployments": [deepcopy(each) for each in entries]}


def ask_prefect(clone: Path, *command: str) -> str:
    """Run `prefect COMMAND` in `clone`, and return what it printed.

    Raises:
        SettingsError: it failed; the last lines of what it said.
    """
    from dspy_toolkit.errors import SettingsError

    environment = os.environ | {
        "DO_NOT_TRACK": "1",
        # Else a deployment that has lost its schedule keeps it.
        "PREFECT_DEPLOYMENTS_CLEAR_SCHEDULES_ON_EMPTY": "true",
    }
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *command],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SettingsError(
            f"Prefect did not answer within {SECONDS:g} s. Is the server up? `make status` says."
        ) from None
    said = (ended.stdout + ended.stderr).strip()
    if ended.returncode:
        raise SettingsError("Prefect refuses it:\n" + "\n".join(said.splitlines()[-12:]))
    return said


def _like(timezone: str) -> set[str]:
    """Time zones that begin alike; all six hundred are no help."""
    from zoneinfo import available_timezones

    return {name for name in available_timezones() if name[:2].lower() == timezone[:2].lower()}
