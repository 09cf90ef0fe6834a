"""What Prefect adds to an optimization: the same one as calls of the library, and as the flow with its temporary server.

    python -m benchmarks.orchestration [--rows 96] [--seconds-a-call 0.02] [--times 3] [--json PATH]

Both optimize a made-up project with the fake model of `dspy_toolkit.testing`, which takes a fixed time for a call and answers one
call after another: the same rows, choice, search, comparison, promotion and record, each time in a process of its own and from an
empty home. Both have the settings that the project ships, and the light budget.

Starting is measured apart: what a process imports, MLflow's new database, and Prefect's temporary server with its own. Much is
imported by the first step that needs it, and not by the same one in both; so each process first optimizes a smaller project by
calls of the library, in another home. Then the two are compared. Library and flow alternate, so that a busy machine is busy for both; processor
seconds are those of the process and, for the flow, of its server.

The flow's requests, events and bytes are what one optimization asks of a Prefect server, and what it leaves there.

Not covered: a server and a worker that run all the time (`benchmarks.queue`); `--workers`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.machine import write
from benchmarks.queue import SETTLE_SECONDS, count_events, size

if TYPE_CHECKING:
    from dspy_toolkit.registry import Decision
    from dspy_toolkit.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
MODEL = "mlx/fake@orchestration"
BUDGET = "light"
FEW = 48
"""Rows of the smaller project."""
Begun = tuple[Callable[[], dict[str, Any]], dict[str, Any]]
"""What is measured, and what starting took."""
GOAL = 1.10
"""Seconds with Prefect, over those without."""
SIDES = ("library", "flow")
CHILD = "import sys; from benchmarks.orchestration import optimize_here; optimize_here(*sys.argv[1:])"
END_SECONDS = 20
NAMES = ["Ada", "Blaise", "Carl", "Dora", "Emmy", "Fermat", "Gauss", "Hilbert", "Ivan", "Jacobi", "Kepler", "Lagrange"]
VERBS = ("met", "taught", "admired", "wrote to")
PROJECT = """
name = "questions"
summary = "Classify a question by the type of its answer"
signature = 'text: str -> label: Literal["number", "person"]'
instructions = "Classify the question by the type of its answer."

[dataset]
source = "questions.csv"
inputs = ["text"]
outputs = ["label"]
"""


def write_project(folder: Path, rows: int) -> Path:
    """Write a project and its rows; its file.

    Args:
        folder: where to.
        rows: at most 1,056.
    """
    lines = ["text,label"]
    pairs = ((verb, name, other) for name, verb, other in product(NAMES, VERBS, NAMES) if name != other)
    # Every eleventh, so that few rows have the same names in them.
    spread = sorted(enumerate(pairs), key=lambda each: (each[0] % 11, each[0]))
    for year, (_, (verb, name, other)) in enumerate(islice(spread, (rows + 1) // 2), 1600):
        lines.append(f"Who {verb} {name} before {other} did?,person")
        lines.append(f"How often has {other} {verb} {name} since {year}?,number")
    (folder / "questions.csv").write_text("\n".join(lines[: rows + 1]) + "\n", encoding="utf-8")
    project = folder / "questions.toml"
    project.write_text(PROJECT, encoding="utf-8")
    return project


def fake_model(seconds: float) -> Any:
    """An engine, served in this process, that tells the labels apart when it has seen demonstrations."""
    from dspy_toolkit.lm.connection import serve_engine
    from dspy_toolkit.lm.protocol import GenerationRequest
    from dspy_toolkit.testing import FakeEngine

    def answer(request: GenerationRequest) -> dict[str, str]:
        # Under the engine's lock: nobody else is answered meanwhile, as by a model that takes one request at a time.
        time.sleep(seconds)
        asked = request.messages[0].content.partition("Your output fields are:")[2].partition("All interactions")[0]
        if "`label`" not in asked:
            return dict.fromkeys(re.findall(r"`(\w+)`", asked), "no")  # an optimizer's own question
        shown = len(request.messages) > 2 and any(sign.isdigit() for sign in request.messages[-1].content)
        return {"label": "number" if shown else "person"}

    engine = FakeEngine(answer, model=MODEL)
    serve_engine(engine)
    return engine


def optimize_here(side: str, project: str, seconds: str, report: str, started: str) -> None:
    """Optimize in this process, which does nothing else and was started at that time, and write what it took to `report`."""
    from dspy_toolkit.settings import load_settings
    from dspy_toolkit.tracking.mlflow_client import session

    engine = fake_model(float(seconds))
    begin = _library if side == "library" else _flow
    optimize, found = begin(project, float(started))
    with tempfile.TemporaryDirectory() as folder:
        optimize_by_library(str(write_project(Path(folder), FEW)), load_settings(home=Path(folder, "home")))
    began = time.perf_counter()
    with session(load_settings(), "opening"):
        found["records"] = time.perf_counter() - began
    before = len(engine.requests)
    found |= optimize()
    found["calls"] = len(engine.requests) - before
    Path(report).write_text(json.dumps(found), encoding="utf-8")


def optimize_by_library(project: str, settings: Settings) -> Decision:
    """The steps of `flows.optimize_program`, in their order."""
    from dspy_toolkit.pipeline.compare import compare
    from dspy_toolkit.pipeline.compile import compile  # noqa: A004
    from dspy_toolkit.pipeline.context import Context
    from dspy_toolkit.pipeline.prepare import prepare
    from dspy_toolkit.pipeline.probe import probe
    from dspy_toolkit.pipeline.record import record
    from dspy_toolkit.pipeline.release import release, release_baseline
    from dspy_toolkit.pipeline.resolve import resolve
    from dspy_toolkit.pipeline.select import select
    from dspy_toolkit.run import CompareInput, CompileInput, Request, Run, SearchInput, SelectInput

    context = Context.open(project, settings)
    ref = resolve(context, Request(location=project))
    dataset = prepare(context, ref.data)
    search = SearchInput.of(ref, dataset)
    profile = probe(context, search.without_start)
    choice = select(context, SelectInput(**dict(search), profile=profile, optimizer=None, budget=BUDGET))
    ref = release_baseline(context, ref)
    asked = CompileInput(**dict(search), choice=choice, profile=profile).unexplained
    compiled = compile(context, asked)
    comparison = compare(context, CompareInput.of(ref, dataset, choice, compiled))
    run = Run(
        name=f"optimize {ref.name}",
        ref=ref,
        dataset=dataset,
        profile=profile,
        choice=choice,
        compiled=compiled,
        comparison=comparison,
    )
    released = release(context, run)
    record(context, released)
    return released.decision


def _library(project: str, started: float) -> Begun:
    from dspy_toolkit.settings import load_settings

    settings = load_settings()
    return lambda: _timed(lambda: optimize_by_library(project, settings)), {"imports": time.time() - started}


def _flow(project: str, started: float) -> Begun:
    # By name: `flows` stands above `benchmarks`, and this process is a user of it, as a shell is.
    watch = import_module("flows.temporary_server").watch_this_process
    optimize_program = import_module("flows.optimize_program").optimize_program
    get_client = import_module("prefect.client.orchestration").get_client
    imports = time.time() - started
    began = time.perf_counter()
    with get_client(sync_client=True) as client:
        client.hello().raise_for_status()
    watch()
    found = {"imports": imports, "server": time.perf_counter() - began}
    database = Path(os.environ["DSPY_TOOLKIT_HOME"], "prefect", "prefect.db")

    def optimize() -> dict[str, Any]:
        before, events, requests = size(database), count_events(database), _count_requests()
        said = _timed(lambda: optimize_program(project, budget=BUDGET))
        asked = requests()
        time.sleep(SETTLE_SECONDS)
        kept = {"bytes": size(database) - before, "events": count_events(database) - events}
        return {**said, **kept, "requests": asked}

    return optimize, found


def _timed(optimize: Callable[[], Any]) -> dict[str, Any]:
    began, busy = time.perf_counter(), _processor()
    decision = optimize()
    return {
        "seconds": time.perf_counter() - began,
        "processor": _processor() - busy,
        "outcome": decision.outcome,
    }


def _processor() -> float:
    """Processor seconds so far, of this process and of those that it has started."""
    spent = 0.0
    for process in (own := psutil.Process(), *own.children(recursive=True)):
        times = process.cpu_times()
        spent += times.user + times.system
    return spent


def _count_requests() -> Callable[[], int]:
    """From now on count what this process asks of Prefect's API; how many so far."""
    import httpx

    asked = 0

    def counting(client: Any) -> None:
        send = client.send

        def counted(self: Any, request: httpx.Request, *arguments: Any, **options: Any) -> Any:
            nonlocal asked
            asked += request.url.path.startswith("/api/")
            return send(self, request, *arguments, **options)

        client.send = counted

    counting(httpx.Client)
    counting(httpx.AsyncClient)
    return lambda: asked


def run(side: str, folder: Path, rows: int, seconds: float) -> dict[str, Any]:
    """Optimize in a process of its own, from an empty home.

    Args:
        side: `library` or `flow`.
        folder: empty.
        rows: of the project.
        seconds: that a call takes.

    Returns:
        In seconds `imports`, `records` (MLflow's database), of the flow `server`, then `seconds` and `processor` of the optimization;
        its `calls` and `outcome`; of the flow what it left with the server: `requests`, `events` and `bytes`.

    Raises:
        SystemExit: the other process failed; with what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    project, report, log = write_project(folder, rows), folder / "report.json", folder / "log"
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    mine |= {
        "DSPY_TOOLKIT_HOME": str(folder / "home"),
        "DSPY_TOOLKIT_LM__MODEL": MODEL,
        "DSPY_TOOLKIT_OBSERVE__PROGRESS": "false",
        "DSPY_CACHEDIR": str(folder / "dspy"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", CHILD, side, str(project), str(seconds), str(report), str(time.time())]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C is for this process, which ends the other.
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=mine,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            # Its temporary server ends with it.
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait()
            for left in psutil.wait_procs(family, END_SECONDS)[1]:
                left.kill()
            raise
    if code:
        sys.exit(f"{log.read_text(encoding='utf-8', errors='replace')[-4000:]}\nThe {side} ended with code {code}.")
    return json.loads(report.read_text(encoding="utf-8"))


def measure(folder: Path, rows: int, seconds: float, times: int) -> dict[str, Any]:
    """Run both, alternating.

    Args:
        folder: empty.
        rows: of the project.
        seconds: that a call takes.
        times: of each.

    Returns:
        `library` and `flow`, each a list of what `run` gives; `ratio` (of `seconds`) and `processor_ratio`, medians of the pairs.
    """
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(times):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            said = run(side, folder / f"{side}-{number}", rows, seconds)
            found[side].append(said)
            print(side, json.dumps({name: _rounded(value) for name, value in said.items()}), flush=True)
    pairs = list(zip(*(found[side] for side in SIDES), strict=True))
    ratios = {
        name: statistics.median(flow[kind] / library[kind] for library, flow in pairs)
        for name, kind in (("ratio", "seconds"), ("processor_ratio", "processor"))
    }
    return {**found, **ratios}


def _rounded(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value


def show(found: dict[str, Any]) -> None:
    """Print what `measure` found."""

    def median(side: str, name: str) -> float:
        return statistics.median(said.get(name, 0) for said in found[side])

    print(
        "\n| median | imports, s | MLflow's database, s | server, s | optimizing, s | processor, s | LM calls | requests | events | bytes |"
    )
    print(f"|---|{'---:|' * 9}")
    for side in SIDES:
        seconds = " | ".join(
            f"{median(side, name):.2f}" for name in ("imports", "records", "server", "seconds", "processor")
        )
        counts = " | ".join(f"{median(side, name):,.0f}" for name in ("calls", "requests", "events", "bytes"))
        print(f"| {side} | {seconds} | {counts} |")
    met = "met" if found["ratio"] <= GOAL else "missed"
    print(
        f"\nWith Prefect it takes {found['ratio']:.3f} × the time without (goal: at most {GOAL:.2f}, {met}); "
        f"processor {found['processor_ratio']:.3f} ×; {median('flow', 'seconds') - median('library', 'seconds'):.1f} s between the medians"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--seconds-a-call", type=float, default=0.02)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    load = [round(each, 1) for each in os.getloadavg()]
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-orchestration-") as folder:
        try:
            found = measure(Path(folder), given.rows, given.seconds_a_call, given.times)
        except KeyboardInterrupt:
            sys.exit(130)
    show(found)
    after = [round(each, 1) for each in os.getloadavg()]
    print(
        f"{given.rows} rows, {given.seconds_a_call} s a call, {os.cpu_count()} cores, load {load} before and {after} after"
    )
    asked = {"rows": given.rows, "seconds_a_call": given.seconds_a_call, "budget": BUDGET}
    write(given.json, "orchestration", {**found, **asked, "load": [load, after]})


if __name__ == "__main__":
    main()
