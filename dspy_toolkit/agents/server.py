"""An MCP server: projects, programs, runs, reports, costs and the doctor, to read; optimizing, where a person has allowed it.

An agent names projects and versions and no files: a path would let it run whatever lies there. What it reads holds rows of the
data where demonstrations do; sealed rows are hidden as they are on every page. Nothing here promotes: the flow that an
optimization runs obeys the gate.

Not covered: who may connect. Over stdio that is whoever starts the server; over HTTP it listens on this machine alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from dspy_toolkit.agents.jobs import Jobs
from dspy_toolkit.errors import ProjectError, RegistryError, ToolkitError
from dspy_toolkit.printable import printable
from dspy_toolkit.registry.references import is_location, is_saved

if TYPE_CHECKING:
    from mcp.server import MCPServer
    from pydantic import BaseModel

    from dspy_toolkit.settings import Settings

Answer = dict[str, Any]
INSTRUCTIONS = """\
dspy-toolkit optimizes DSPy programs, proves them on sealed rows and keeps the versions.
Begin with list_projects and list_programs. A program is named project@champion or project@3.
show_program gives the exact messages that the model gets, diff_programs what two versions differ in,
list_runs and show_run what earlier optimizations gained and cost, doctor what is wrong with this machine.
Nothing you can call promotes a program: the gate decides, on rows that nobody has tuned on."""
LONGEST_REPORT = 60_000
"""Characters of a page's text."""
COSTS = re.compile(r"(calls|tokens|usd|seconds)$")
_RUN = re.compile("[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(@[\w.-]+)?", re.ASCII)


def make_server(
    settings: Settings,
    *,
    doctor: Callable[[], Iterable[BaseModel]] | None = None,
    jobs: Jobs | None = None,
) -> MCPServer:
    """The server, which no transport runs yet.

    Args:
        settings: the home and the registry.
        doctor: gives the findings about this machine; no tool without it.
        jobs: starts optimizations; without it there is no tool that does.

    Raises:
        ToolkitError: the package `mcp` is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp.types import ToolAnnotations
    except ImportError as error:
        raise ToolkitError(
            f"The MCP server needs a package: {error}. Run `pip install 'dspy-toolkit[agents]'`."
        ) from error
    server = MCPServer("dspy-toolkit", instructions=INSTRUCTIONS, version=version("dspy-toolkit"))
    reads = server.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    for tool in _reading(settings):
        reads(_explained(tool))
    if doctor is not None:
        reads(_explained(_doctor(doctor)))
    if jobs is not None:
        start, look = _optimizing(settings, jobs)
        server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False))(_explained(start))
        reads(_explained(look))
    return server


def _explained(tool: Callable[..., Any]) -> Callable[..., Any]:
    """The tool, whose errors tell the agent what the commands tell a person. Of any other error the SDK says nothing."""
    from mcp.server.mcpserver.exceptions import ToolError

    @functools.wraps(tool)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return tool(*args, **kwargs)
        except ToolkitError as error:
            raise ToolError(str(error)) from error

    return told


def _reading(settings: Settings) -> list[Callable[..., Any]]:
    def list_projects() -> list[Answer]:
        """The projects that are known by name: what each does, and the number of its champion."""
        from dspy_toolkit import registry
        from dspy_toolkit.project.listing import list_known

        saved = set(registry.list_projects(settings))
        known = [each._asdict() for each in list_known(settings)]
        names = {each["name"] for each in known}
        known += [
            {"name": name, "summary": "", "location": "", "fault": "it is in the registry alone"}
            for name in saved - names
        ]
        live = {name: registry.champion(settings, name).version for name in saved}
        return [each | {"champion": live.get(each["name"])} for each in known]

    def show_project(project: str) -> Answer:
        """A project's fields, metric, dataset and settings."""
        from dspy_toolkit.project import load_named
        from dspy_toolkit.project.listing import describe

        return describe(load_named(_checked(project), settings))

    def validate_project(project: str) -> list[Answer]:
        """What is wrong with a project, each finding with its fix."""
        from dspy_toolkit.pipeline.validate import validate
        from dspy_toolkit.project import load_named

        load_named(_checked(project), settings)  # a name and no path
        return [finding.model_dump(mode="json") for finding in validate(settings, project)]

    def list_programs(project: str = "") -> list[Answer]:
        """The saved versions of a project, or of all; the alias `champion` is on what is live."""
        from dspy_toolkit import registry

        names = [_checked(project)] if project else registry.list_projects(settings)
        return [found.model_dump(mode="json") for name in names for found in registry.list_versions(settings, name)]

    def show_program(program: str) -> Answer:
        """A program: its manifest (origin, scores, verdict), its state, and the exact messages that the model gets."""
        from dspy_toolkit.registry.messages import messages_of
        from dspy_toolkit.registry.programs import load_program, load_state, own_state

        state, manifest = load_state(settings, _checked(program))
        told: Answer = {"manifest": manifest and manifest.model_dump(mode="json")}
        told["state"] = state if manifest else own_state(settings, program)
        try:
            loaded = load_program(settings, program)
            sent = messages_of(loaded.program, settings.for_project(loaded.project.name))
            told["messages"] = [each.model_dump(mode="json") for each in sent]
        except (ProjectError, RegistryError) as error:
            told["messages_missing"] = str(error)
        return told

    def diff_programs(first: str, second: str) -> Answer:
        """Two programs side by side: instructions, demonstrations, levers, scores."""
        from dspy_toolkit.registry.differences import differences

        return differences(settings, _checked(first), _checked(second)).model_dump(mode="json")

    def list_champions(project: str) -> list[Answer]:
        """The champion and those before it, in the order in which a rollback returns to them."""
        from dspy_toolkit.registry import champions

        return [found.model_dump(mode="json") for found in champions(settings, _checked(project))]

    def list_runs(project: str = "", limit: int = 20) -> list[Answer]:
        """Earlier optimizations, the newest first: what each was given, gained and cost."""
        from dspy_toolkit.tracking.history import read_history

        found = read_history(settings, project=_checked(project) if project else None, limit=max(1, min(limit, 200)))
        return [run.model_dump(mode="json") for run in found.runs]

    def show_run(run_id: str) -> Answer:
        """Everything that is recorded of one run: parameters, numbers, tags."""
        params, metrics, tags = _run(settings, run_id)
        return {
            "params": params,
            "metrics": metrics,
            "tags": {k: v for k, v in tags.items() if not k.startswith("mlflow.")},
        }

    def read_costs(run_id: str) -> dict[str, float]:
        """What one run cost: LM calls, tokens, seconds and dollars, by step."""
        return {name: value for name, value in _run(settings, run_id)[1].items() if COSTS.search(name)}

    def read_report(project: str, run_id: str) -> str:
        """The page of a run as text: what changed, the rows won and lost, what it cost."""
        name, run = _checked(project), _checked_run(run_id)
        path = settings.path("reports", name, f"{run}.html")
        if not path.is_file():
            raise RegistryError(f"There is no page of the run {run} of {name}. See list_runs.")
        reader = _Text()
        reader.feed(path.read_text(encoding="utf-8"))
        text = printable(re.sub(r"\n\s*\n+", "\n", "".join(reader.parts))).strip()
        return text if len(text) <= LONGEST_REPORT else f"{text[:LONGEST_REPORT]}\n… ({len(text):,} characters)"

    return [
        list_projects, show_project, validate_project, list_programs, show_program, diff_programs, list_champions,
        list_runs, show_run, read_costs, read_report,
    ]  # fmt: skip


def _doctor(examine: Callable[[], Iterable[BaseModel]]) -> Callable[[], list[Answer]]:
    def doctor() -> list[Answer]:
        """What this machine, home and configuration come to, and what is wrong with them."""
        return [finding.model_dump(mode="json") for finding in examine()]

    return doctor


def _optimizing(settings: Settings, jobs: Jobs) -> tuple[Callable[..., Answer], Callable[..., Answer]]:
    def optimize(project: str, lm_calls: int, optimizer: str = "") -> Answer:
        """Start an optimization of a project by its name, with a number of LM calls; the gate decides about the result.

        The calls are for the search. What the probe and the comparisons may take (calls_beside) is charged with them to what a
        person has allowed; lm_calls_left says what is left. One runs at a time. Ask optimization_status how it stands.
        """
        from dspy_toolkit.agents.beside import calls_beside
        from dspy_toolkit.optimizers.plan.selection import check_optimizer
        from dspy_toolkit.project import load_named

        found = load_named(_checked(project), settings)
        if optimizer:
            check_optimizer(optimizer)
        job = jobs.optimize(found.name, lm_calls, calls_beside(settings, found), optimizer)
        return job.model_dump() | {"lm_calls_left": jobs.left}

    def optimization_status(job_id: str) -> Answer:
        """How an optimization that was started here stands, and the end of what it has printed."""
        return jobs.job(job_id).model_dump()

    return optimize, optimization_status


class _Text(HTMLParser):
    """The text of a page, without its style."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("style", "script", "svg")
        if tag in ("tr", "p", "h1", "h2", "h3", "li", "div", "pre", "section", "br"):
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append("\t")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script", "svg")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _checked(name: str) -> str:
    # What looks like a place would be taken for one, and a file's code would run.
    if not _NAME.fullmatch(name) or is_location(name) or is_saved(name):
        raise ProjectError(
            f"{name[:80]!r} is no name of a project or program. Write router, router@champion or router@3."
        )
    return name


def _checked_run(run_id: str) -> str:
    if not _RUN.fullmatch(run_id):
        raise RegistryError(f"{run_id[:80]!r} is no run's id, which list_runs gives.")
    return run_id


def _run(settings: Settings, run_id: str) -> tuple[dict[str, str], dict[str, float], dict[str, str]]:
    from dspy_toolkit.tracking.mlflow_client import exists, session

    run_id = _checked_run(run_id)
    if not exists(settings):
        raise RegistryError("No run is recorded here yet.")
    with session(settings, f"The run {run_id} could not be read") as mlflow:
        data = mlflow.get_run(run_id).data
    return dict(data.params), dict(data.metrics), dict(data.tags)
