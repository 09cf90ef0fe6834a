"""Looking at live programs as Prefect's tasks: what was seen goes to MLflow and to the run's page, what matters to people."""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from dspy_toolkit.display.progress import step
from dspy_toolkit.errors import RegistryError
from dspy_toolkit.monitoring.watching import Watch, watch
from dspy_toolkit.project import project_names
from dspy_toolkit.registry import champion, find_version, list_projects, rollback
from dspy_toolkit.run import Request
from dspy_toolkit.settings import load_settings
from dspy_toolkit.tracking.looks import TAG, keep_look
from dspy_toolkit.tracking.runs import record_run
from tasks.events import tell
from tasks.policy import RETRYING, accelerator, open_project
from tasks.show import artifact_key, link, place_of

CHALLENGER = "optimize-program/nightly-{project}"
"""The deployment that looks for a better program."""
GIGABYTE = 1e9


@task(task_run_name="which programs are live", cache_policy=NO_CACHE, **RETRYING)
def programs_to_watch(project: str) -> list[str]:
    """`project`, or where it is empty every project with a champion that this machine knows by its name."""
    if project:
        return [project]
    settings = load_settings()
    live = [name for name in list_projects(settings) if champion(settings, name).version is not None]
    if unknown := sorted(set(live) - set(project_names(settings))):
        get_run_logger().warning(
            "Not looked at: %s. Write their places into dspy-toolkit.toml, as location in a table [projects.NAME].",
            ", ".join(unknown),
        )
    return [name for name in live if name not in unknown]


@task(task_run_name="look at {location}", cache_policy=NO_CACHE, **RETRYING)
def look_at_program(location: str) -> Watch | None:
    """See how the live program does; None while nothing is live."""
    context = open_project(Request(location=location))
    with accelerator(), step(f"look at {location}") as reporter:
        return watch(context, reporter.calls)


@task(task_run_name="record what was seen of {found.project}", cache_policy=NO_CACHE, **RETRYING)
def record_look(found: Watch, name: str) -> str:
    """A run of MLflow's, tagged, and the artifacts of the run's page; the MLflow run's id."""
    with step("record"):
        run_id = keep_look(load_settings(), found, name)
        if found.engine is not None:
            record_run(load_settings(), found.project, name, {}, found.engine.metrics, run_id=run_id)
        link(load_settings(), run_id)
    rows = [
        {
            "what": name,
            "mean": f"{fall.mean:.1%}" if fall.mean is not None else "",
            "rows": fall.n,
            "promoted with": f"{fall.reference:.1%}",
            "e-value": f"{fall.e_value:.3g}",
            "verdict": "fallen" if fall.confirmed else "suspected" if fall.suspected else "as before",
        }
        for name, fall in found.falls
    ]
    create_table_artifact(rows, key=artifact_key(found.project, "watch"), description=found.sentence)
    lines = [f"- {drift.sentence}{' **drifted**' if drift.drifted else ''}" for drift in found.drift]
    if (sure := found.calibration) is not None:
        off = "off" if sure.off else "within chance"
        lines.append(
            f"- confidence: {sure.confidence:.1%} in the mean, right {sure.right:.1%}; error {sure.error:.3f}, {off}"
        )
    if found.seconds_median is not None:
        lines.append(f"- seconds a reply: {found.seconds_median:.2f} in the middle, {found.seconds_p95:.2f} for 95 %")
    lines.append(f"- asked again: {found.asked_again} rows, {found.otherwise} answered otherwise")
    lines.append(f"- parse failures: {found.parse_failures} of the rows that were run")
    if found.engine is not None:
        lines.append(f"- engine: {found.engine.sentence}")
    lines.append(f"- MLflow run `{run_id}`, tag `{TAG}`")
    create_markdown_artifact(
        f"## {found.project}@{found.version}\n\n{found.sentence}\n\n" + "\n".join(lines),
        key=artifact_key(found.project, "watch-details"),
        description=f"What was seen of {found.project}",
    )
    return run_id


@task(task_run_name="act on what was seen of {found.project}", cache_policy=NO_CACHE)
def act_on_fall(found: Watch, location: str, auto_rollback: bool) -> str:
    """Tell what matters, begin a new search after a fall, and roll back where that is wanted and beyond doubt.

    Returns:
        What was done: `nothing`, `told`, `rolled back`.
    """
    log, name = get_run_logger(), f"{found.project}@{found.version}"
    page, shown = place_of(artifact_key(found.project, "watch-details")), f"dspy-toolkit programs show {name}"
    # By the version, and the field: what is found of another one is another alert, and not folded into this one.
    for field, sentences in drifted_fields(found).items():
        tell("drift", f"{name} {field}", "; ".join(sentences) + ".", look=page, command=shown)
    if found.otherwise:
        said = f"{name} answers {found.otherwise} of {found.asked_again} rows otherwise than when it was promoted."
        tell("not-reproduced", name, said, look=page, command="dspy-toolkit doctor")
    if not found.suspected:
        return "nothing"
    log.warning("%s", found.sentence)
    tell("regression", name, found.sentence, look=page, command=f"dspy-toolkit programs rollback {found.project}")
    if found.confirmed and auto_rollback and (back := _roll_back(found)) is not None:
        tell(
            "rolled-back",
            found.project,
            f"{name} has fallen; {found.project}@{back} is live again.",
            look=page,
            command=shown,
        )
    _begin_search(found, location)
    return "rolled back" if champion(load_settings(), found.project).version != found.version else "told"


def drifted_fields(found: Watch) -> dict[str, list[str]]:
    """Input or output → what has drifted of it, in sentences."""
    fields: dict[str, list[str]] = {}
    for drift in found.drift:
        if drift.drifted:
            fields.setdefault(drift.field, []).append(drift.sentence)
    return fields


def _roll_back(found: Watch) -> int | None:
    settings, log = load_settings(), get_run_logger()
    if champion(settings, found.project).version != found.version:
        log.warning("Another version of %s is live by now; nothing is rolled back.", found.project)
        return None
    try:
        if find_version(settings, f"{found.project}@{found.version}").previous is None:
            log.warning("%s@%d is the first version: there is nothing to roll back to.", found.project, found.version)
            return None
        return rollback(settings, found.project)
    except RegistryError as error:
        log.warning("Not rolled back: %s", error)
        return None


def _begin_search(found: Watch, location: str) -> None:
    """A challenger: a run of the project's nightly deployment, now; once a version, however often its fall is seen."""
    if get_current_settings().api.url is None:  # a temporary server has no deployments
        return
    deployment = CHALLENGER.format(project=found.project)
    try:
        run_deployment(
            deployment,
            timeout=0,
            tags=["challenger"],
            idempotency_key=f"challenger-{found.project}-{found.version}",
        )
    except ObjectNotFound:
        get_run_logger().warning(
            "There is no deployment %s to look for a better program. Make it: dspy-toolkit deploy %s --cron '30 2 * * *'",
            deployment,
            location,
        )


@task(task_run_name="look at this machine", cache_policy=NO_CACHE, **RETRYING)
def look_at_machine() -> dict[str, float | bool]:
    """The home's free disk, and whether the machine is slowed down to stay cool; what is wrong is told."""
    settings, host = load_settings(), socket.gethostname()
    free = shutil.disk_usage(settings.path()).free / GIGABYTE
    if free < settings.monitor.disk_free_gb:
        said = f"{free:.1f} GB are free on the disk of {settings.path()}; less than {settings.monitor.disk_free_gb:g} is told."
        tell("disk-low", host, said, look=str(settings.path()), command="dspy-toolkit doctor")
    hot = throttled()
    if hot:
        tell("throttled", host, f"{host} is slowed down to stay cool.", look="pmset -g therm", command="pmset -g therm")
    return {"disk_free_gb": free, "throttled": hot}


def throttled() -> bool:
    """Whether macOS limits the CPU's speed. False elsewhere."""
    if platform.system() != "Darwin":
        return False
    said = subprocess.run(["pmset", "-g", "therm"], capture_output=True, text=True, timeout=10, check=False).stdout
    return is_throttled(said)


def is_throttled(said: str) -> bool:
    """Whether what `pmset -g therm` prints says that the CPU may not run at its full speed."""
    for line in said.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "CPU_Speed_Limit" and value.strip().isdigit():
            return int(value) < 100
    return False
