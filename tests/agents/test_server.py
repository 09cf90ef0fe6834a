"""What an agent can read and start, seen by the SDK's own client."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from dspy_toolkit.agents import Jobs, make_server
from dspy_toolkit.agents.beside import calls_beside
from dspy_toolkit.errors import OptimizerError, ProjectError
from dspy_toolkit.pipeline.context import Context
from dspy_toolkit.pipeline.prepare import look_at_rows
from dspy_toolkit.project import load_named, load_project, register
from dspy_toolkit.project.finding import _registered
from dspy_toolkit.registry import promote
from dspy_toolkit.settings import OptimizeSettings, Settings
from dspy_toolkit.store import Frozen
from dspy_toolkit.tracking.runs import record_run
from tests.optimizers.past_runs import SAID, record


class Line(Frozen):
    name: str


@pytest.fixture
def known(questions: Path) -> Any:
    """The project with its rows, known by its name."""
    rows = [f"How many of {n}?,number\nWho was the {n}th?,person" for n in range(30)]
    questions.with_name("questions.csv").write_text("\n".join(["text,label", *rows]))
    register(load_project(str(questions)))
    yield
    _registered.pop("questions")


def ask(server: Any, calls: Callable[[Any], Awaitable[Any]]) -> Any:
    """What `calls` gives with a client of `server`."""
    from mcp import Client

    async def run() -> Any:
        async with Client(server) as client:
            return await calls(client)

    return asyncio.run(run())


def call(server: Any, tool: str, **arguments: Any) -> Any:
    """What one tool answers; its error as a text."""

    async def calls(client: Any) -> Any:
        return await client.call_tool(tool, arguments)

    answer = ask(server, calls)
    if answer.is_error:
        return answer.content[0].text
    found = answer.structured_content
    return found["result"] if isinstance(found, dict) and set(found) == {"result"} else found


def tools(server: Any) -> dict[str, Any]:
    async def calls(client: Any) -> Any:
        return await client.list_tools()

    return {tool.name: tool for tool in ask(server, calls).tools}


READING = {
    "list_projects", "show_project", "validate_project", "list_programs", "show_program", "diff_programs", "list_champions",
    "list_runs", "show_run", "read_costs", "read_report",
}  # fmt: skip


def test_without_the_flag_every_tool_reads_alone(home: Settings) -> None:
    found = tools(make_server(home, doctor=list))
    assert set(found) == {*READING, "doctor"}
    assert all(tool.annotations.read_only_hint for tool in found.values())
    assert all(tool.description for tool in found.values())


def test_projects_and_programs_are_read(home: Settings, save_questions: Callable[..., int], known: None) -> None:
    promote(home, "questions", save_questions("Be brief."))
    save_questions("Be exact.")
    server = make_server(home, doctor=lambda: [Line(name="all is well")])
    (project,) = [each for each in call(server, "list_projects") if each["name"] == "questions"]
    assert (project["champion"], project["summary"]) == (1, "Classify a question")
    assert call(server, "show_project", project="questions")["metric"] == "exact_match"
    assert [each["version"] for each in call(server, "list_programs", project="questions")] == [1, 2]
    shown = call(server, "show_program", program="questions@champion")
    assert shown["manifest"]["optimizer"] == "bootstrap"
    assert "Be brief." in shown["messages"][0]["messages"][0]["content"]
    assert call(server, "diff_programs", first="questions@1", second="questions@2")["predictors"][0]["both"] == 1
    assert [each["version"] for each in call(server, "list_champions", project="questions")] == [1]
    assert call(server, "doctor") == [{"name": "all is well"}]


def test_runs_costs_and_reports_are_read(home: Settings) -> None:
    numbers = {"compile_lm_calls": 12.0, "compile_seconds": 3.5, "val_gain": 0.1}
    run_id = record_run(home, "questions", "optimize questions", {"optimizer": "gepa"}, numbers)
    page = home.path("reports", "questions", f"{run_id}.html")
    page.parent.mkdir(parents=True)
    page.write_text("<style>p {color: red}</style><h1>Gained</h1><p>Ten &amp; two\x1b[31m</p><script>alert(1)</script>")
    server = make_server(home)
    assert call(server, "show_run", run_id=run_id)["params"] == {"optimizer": "gepa"}
    assert call(server, "read_costs", run_id=run_id) == {"compile_lm_calls": 12.0, "compile_seconds": 3.5}
    assert call(server, "read_report", project="questions", run_id=run_id) == "Gained\nTen & two\\x1b[31m"
    assert call(server, "list_runs") == []


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("show_project", {"project": "/etc/passwd"}),
        ("show_project", {"project": "evil.py:project"}),
        ("validate_project", {"project": "evil.toml"}),
        ("show_program", {"program": "../bundle"}),
        ("show_program", {"program": "evil.py"}),
        ("read_report", {"project": "..", "run_id": "0" * 32}),
        ("read_report", {"project": "questions", "run_id": "../../x"}),
        ("show_run", {"run_id": "x' or 1=1"}),
    ],
)
def test_an_agent_names_things_and_no_files(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, arguments: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("open('ran', 'w')\n")
    Path("evil.toml").write_text("x")
    said = call(make_server(home), tool, **arguments)
    assert isinstance(said, str) and ("no name" in said or "no run" in said or "no project" in said), said
    assert not Path("ran").exists()


class Started:
    """Starts nothing but a command that waits until it is told to end."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, command: Sequence[str], out: IO[bytes]) -> subprocess.Popen[bytes]:
        self.commands.append(list(command))
        code = "print('optimizing', flush=True); import sys; sys.exit(int(sys.stdin.readline()))"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=out)
        self.processes.append(process)
        return process

    def end(self, code: int) -> None:
        assert self.processes[-1].stdin is not None
        self.processes[-1].communicate(f"{code}\n".encode())


def test_with_the_flag_it_starts_runs_within_the_budget(home: Settings, known: None) -> None:
    started = Started()
    beside = calls_beside(home, load_named("questions", home))
    server = make_server(home, jobs=Jobs(home, 100 + 2 * beside, started))
    assert not tools(server)["optimize"].annotations.read_only_hint
    refused = call(server, "optimize", project="questions", lm_calls=101 + beside)
    assert "left of what this server may spend. Ask for 1 to" in refused and f"may take {beside} more" in refused
    assert "is no name" in call(server, "optimize", project="evil.py:project", lm_calls=10)
    assert "Did you mean" in call(server, "optimize", project="questions", lm_calls=10, optimizer="geppa")
    assert started.commands == []
    job = call(server, "optimize", project="questions", lm_calls=60, optimizer="gepa")
    assert (job["state"], job["calls_beside"], job["lm_calls_left"]) == ("running", beside, 40 + beside)
    assert started.commands[0][1:] == [
        "-m", "flows.optimize_program", "--project", "questions", "--budget", "60", "--optimizer", "gepa",
    ]  # fmt: skip
    assert "is running" in call(server, "optimize", project="questions", lm_calls=10)
    started.end(0)
    done = call(server, "optimization_status", job_id=job["id"])
    assert done["state"] == "done" and "optimizing" in done["said"]
    again = call(server, "optimize", project="questions", lm_calls=40)
    started.end(3)
    assert call(server, "optimization_status", job_id=again["id"])["state"] == "failed"
    spent = call(server, "optimize", project="questions", lm_calls=1)
    assert "0 are left" in spent and "Let a person allow more with --most-calls" in spent
    assert "has started no job 'none'" in call(server, "optimization_status", job_id="none")


def test_what_is_charged_beside_a_budget_is_the_most_that_the_rows_allow(home: Settings, known: None) -> None:
    project = load_named("questions", home)
    splits = Counter(look_at_rows(Context(project, home)).splits)
    val, sealed = splits["val"], splits["sealed"]
    assert val > 0 and sealed > 0
    # The probe, two programs on validation rows and then on all that no search has read, and one call for an instruction.
    once = val + 2 * (val + sealed + val)
    assert calls_beside(home, project) == once + 1
    thrice = home.model_copy(update={"optimize": OptimizeSettings(repeats=3)})
    assert calls_beside(thrice, project) == val + 3 * (once - val) + 1
    # A program that was seen to ask more often than it has predictors.
    record(home, "questions", profile=SAID["profile"] | {"calls_per_run": 2.5})
    assert calls_beside(home, project) == math.ceil(2.5 * once) + 1


def test_without_a_clone_nothing_is_started(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    jobs = Jobs(home, 10)
    with pytest.raises(ProjectError, match="Start the server in a clone"):
        jobs.optimize("router", 5, 0)
    assert jobs.left == 10
    with pytest.raises(OptimizerError):
        jobs.job("x")


def test_the_command_serves_over_stdio(home: Settings, save_questions: Callable[..., int]) -> None:
    """A real process, as an agent starts it."""
    from mcp import Client, StdioServerParameters

    save_questions("Be brief.")
    root = str(Path(__file__).parents[2])
    environment = {"DSPY_TOOLKIT_HOME": str(home.path()), "PYTHONPATH": root, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = StdioServerParameters(
        command=sys.executable,
        args=["-c", "from dspy_toolkit.cli import main; main(['mcp'])"],
        env=environment,
        cwd=root,
    )

    async def run() -> Any:
        async with Client(command, read_timeout_seconds=240) as client:
            return await client.call_tool("list_programs", {"project": "questions"})

    answer = asyncio.run(run())
    assert json.loads(answer.content[0].text)["version"] == 1
