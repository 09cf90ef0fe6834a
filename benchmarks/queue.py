"""A queue of runs that one worker drains: seconds a run, what bounds them, and what a run costs Prefect's server.

    python -m benchmarks.queue [--runs 200] [--at-once 4] [--real 8] [--poll SECONDS] [--direct] [--json PATH]

Prefect's server, on SQLite, and a worker are started as `make up` starts them, with the same environment, each as a process of
its own, in a temporary home and at a free port. All runs are queued before the worker starts. First a flow that imports Prefect
only and returns at once, then (`--real`) one that imports `flows.score_candidate`, as every candidate of `--workers` does.

The parts of a run come from the times of its states, and from when its flow had been imported, which it writes down. Requests are counted in the
server's log of accesses, less this benchmark's own; bytes are those of the database's pages. Processor seconds say more than
seconds do on a machine that is busy with other work.

`--poll` and `--direct` change what the project ships, to see what it costs: how often the worker asks for runs, and whether a
run's process prepares its folder first and then starts Python a second time, as Prefect does where no command is named.

Not covered: PostgreSQL, several servers, workers on other machines, runs that are long or have tasks (`benchmarks.orchestration`
counts what one optimization asks of the server).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from benchmarks.machine import write
from dspy_toolkit.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 300
LOOK_SECONDS = 2
PAUSE_SECONDS = 0.2
"""Before a request is made again, on average."""
STALL_SECONDS = 300
"""Without a run that ends: those that are left are lost."""
SETTLE_SECONDS = 12
"""For the server to write down what it keeps back: events and logs."""
END_SECONDS = 30
"""For the process of a run that is over."""
IDLE_SECONDS = 60
"""How long the worker is watched while there is nothing to do."""
HEARTBEATS = 200
CLIENTS = 4
"""That queue runs, or send heartbeats, at once."""
MINE = {"by": "benchmark"}
"""On every request of this benchmark, which the server's log shows and the server takes no notice of."""
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
DIRECT = f"{sys.executable} -m prefect.engine"
REQUEST = re.compile(r'"([A-Z]+) (/api/[^ ?]*)(\?by=benchmark)?[^"]*" (\d+)')
SOCKET = re.compile(r'"WebSocket /api/\S+" \[accepted\]')
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|(?<=work_pools/)[^/]+")

IMPORTS = {"nothing": "", "scoring": "from flows.score_candidate import score_candidate\n"}
"""The flows, and what they import beside Prefect."""
FLOW = '''"""Returns at once, and leaves the time at which it had been imported."""

import os
import time

from prefect import flow
{imports}
LOADED = time.time()


@flow
def {name}() -> None:
    with open(os.path.join({folder!r}, os.environ["PREFECT__FLOW_RUN_ID"]), "w") as file:
        file.write(str(LOADED))
'''


class Asked(NamedTuple):
    """Requests of a Prefect server."""

    routes: Counter[str]
    """How often each, without ids."""
    refused: int
    """That the server was too busy for; their clients made them again."""
    sockets: int
    """Connections over which events come and go."""


def requests_in(log: str) -> Asked:
    """What a server's log of accesses says, without this benchmark's own requests."""
    routes, refused = Counter[str](), 0
    for method, path, own, code in REQUEST.findall(log):
        if not own:
            routes[f"{method} {ID.sub('…', path.removeprefix('/api'))}"] += 1
            refused += code == "503"
    return Asked(routes, refused, len(SOCKET.findall(log)))


class Bench:
    """A server, what it was told, and a worker."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: empty; for the home, the flows and the logs.
        """
        # By name: `deployments` stands above `benchmarks`, and this measures what it starts.
        places, services = import_module("deployments.places"), import_module("deployments.services")
        self.folder, self._services = folder, services
        port = _free_port()
        self._home = folder / "home"
        found = places.Places(folder, Settings(home=self._home), places.Ports(server=port))
        # Nothing of the user's server, and nothing that names a run that this may be a part of.
        mine = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment: dict[str, str] = {**mine, **found.environment, "PYTHONPATH": str(ROOT)}
        self.log, self.database = folder / "server.log", self._home / "prefect" / "prefect.db"
        self.database.parent.mkdir(parents=True)
        self.processes: list[psutil.Popen] = []
        name, _, password = found.environment["PREFECT_API_AUTH_STRING"].partition(":")
        self.http = httpx.Client(base_url=found.api, auth=(name, password), params=MINE, timeout=120)
        self._server = ("server", "start", "--host", places.HOST, "--port", str(port))
        self._pool: str = places.POOL
        self.refused = 0
        """Requests of this benchmark that the server was too busy for, and that were made again."""

    def __enter__(self) -> Bench:
        try:
            # What a server says at this level is its log of accesses.
            self._start(self._server, self.log, {"PREFECT_SERVER_LOGGING_LEVEL": "INFO"})
            self._wait(lambda: self.http.get("/health").is_success)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all: the worker, the server, and runs of which the worker did not see the end."""
        self.http.close()
        for process in reversed(self.processes):
            self._services.end_all([process, *self._services.family(process)], first=process)
            process.wait()
        self._services.end_all(self._services.marked(self._home))

    def deploy(self, name: str, *, direct: bool) -> str:
        """Write a flow and tell the server of it; the deployment's id."""
        (self.folder / "moments").mkdir(exist_ok=True)
        source = FLOW.format(name=name, imports=IMPORTS[name], folder=str(self.folder / "moments"))
        (self.folder / f"{name}.py").write_text(source, encoding="utf-8")
        # As prefect.yaml has it, where both are the worker's own folder.
        variables = {"working_dir": str(self.folder), **({"command": DIRECT} if direct else {})}
        step = {"prefect.deployments.steps.set_working_directory": {"directory": str(self.folder)}}
        if self.http.get(f"/work_pools/{self._pool}").status_code == 404:
            self.ask("/work_pools/", {"name": self._pool, "type": "process", "base_job_template": {}})
        flow = self.ask("/flows/", {"name": name})["id"]
        asked = {"name": "queue", "flow_id": flow, "entrypoint": f"{name}.py:{name}", "work_pool_name": self._pool}
        return self.ask("/deployments/", {**asked, "pull_steps": [step], "job_variables": variables})["id"]

    def start_worker(self, at_once: int, poll: float | None) -> None:
        """Start the worker, as `make up` does."""
        changed = {} if poll is None else {"PREFECT_WORKER_QUERY_SECONDS": str(poll)}
        words = ("worker", "start", "--pool", self._pool, "--name", "benchmark", "--limit", str(at_once))
        self._start(words, self.folder / "worker.log", changed)

    def ask(self, path: str, body: Any) -> Any:
        """Send `body`, again where the server is too busy, as Prefect's client does; the reply."""
        until = time.monotonic() + STALL_SECONDS
        while (answer := self.http.post(path, json=body)).status_code == 503 and time.monotonic() < until:
            self.refused += 1
            time.sleep(random.uniform(0, 2 * PAUSE_SECONDS))
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def ask_all(self, asked: Sequence[tuple[str, Any]]) -> tuple[list[Any], dict[str, float]]:
        """Send all from some clients at once; the replies, and how the server bore it."""
        refused, busy, began = self.refused, self.busy(0), time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            replies = list(pool.map(lambda one: self.ask(*one), asked))
        seconds, busy = time.perf_counter() - began, self.busy(0) - busy
        return replies, {
            "a_second": len(asked) / seconds,
            "processor_seconds": busy / len(asked),
            "refused": self.refused - refused,
        }

    def busy(self, process: int) -> float:
        """Processor seconds so far of the server (0), or of the worker and those of its runs that have ended (1)."""
        spent = self.processes[process].cpu_times()
        return spent.user + spent.system + spent.children_user + spent.children_system

    def wait_for_runs(self) -> None:
        """Until the worker has no process of a run any more."""
        self._services.wait_for(self.processes[1].children(recursive=True), END_SECONDS)

    def requests_since(self, offset: int) -> Asked:
        """What the worker and its runs asked, by the server's log from this byte on."""
        return requests_in(self.log.read_bytes()[offset:].decode(errors="replace"))

    def _start(self, words: Sequence[str], log: Path, changed: Mapping[str, str]) -> None:
        with log.open("ab") as output:
            # A session of its own: Ctrl-C is for this process, which ends the others in their order.
            process = psutil.Popen(
                [sys.executable, "-m", "prefect", *words], cwd=self.folder, env={**self.environment, **changed},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)

    def _wait(self, answers: Any) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.processes[0].poll() is None:
            try:
                if answers():
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise SystemExit(f"Prefect's server does not answer.\n{self.log.read_text(errors='replace')[-2000:]}")


def measure(
    folder: Path, runs: int, at_once: int, real: int = 0, *, poll: float | None = None, direct: bool = False,
    idle_seconds: float = IDLE_SECONDS,
) -> dict[str, Any]:  # fmt: skip
    """Queue `runs` runs, have one worker drain them, and end every process that was started.

    Args:
        folder: empty.
        runs: of the flow that imports Prefect only.
        at_once: of them, on the worker.
        real: runs of the flow that imports what a candidate's does, afterwards.
        poll: seconds between two questions of the worker for runs; None: Prefect's own.
        direct: name the command of a run's process, which then starts Python once.
        idle_seconds: how long the worker is watched while nothing is queued.

    Returns:
        `queued`, `nothing` and `scoring` (see `_drain`), `idle` and `heartbeats`.
    """
    found: dict[str, Any] = {}
    with Bench(folder) as bench:
        trivial = bench.deploy("nothing", direct=direct)
        before = size(bench.database)
        made, found["queued"] = bench.ask_all([(f"/deployments/{trivial}/create_flow_run", {})] * runs)
        bench.start_worker(at_once, poll)
        found["nothing"] = _drain(bench, trivial, [run["id"] for run in made], at_once)
        time.sleep(SETTLE_SECONDS)
        after = size(bench.database)
        found["nothing"] |= {
            "bytes": (after - before) / runs,
            "events": count_events(bench.database) / runs,
            "event_bytes": _bytes_an_event(bench.database),
        }
        found["idle"] = _idle(bench, idle_seconds)
        # The part of the requests that was the worker's asking, which is there with and without runs.
        polled = found["idle"]["requests_a_second"] * found["nothing"]["seconds"]
        found["nothing"]["requests"] = (found["nothing"]["requests_in_all"] - polled) / runs
        found["heartbeats"] = _heartbeats(bench)
        if real:
            scoring = bench.deploy("scoring", direct=direct)
            made, _ = bench.ask_all([(f"/deployments/{scoring}/create_flow_run", {})] * real)
            found["scoring"] = _drain(bench, scoring, [run["id"] for run in made], at_once)
    return found


def _drain(bench: Bench, deployment: str, runs: Sequence[str], at_once: int) -> dict[str, Any]:
    """Wait until all runs of a deployment have ended, and their processes too.

    Returns:
        `ended` (how many in which state), `lost` (neither that, nor known to the server), `seconds` (from the first that the
        worker took to the last one's end), `seconds_a_run`, `parts` (median seconds), `requests_in_all` by the worker and its
        runs, `routes` (how often each was asked, a run), `sockets` (connections, a run), `refused` (of the requests), and
        `server` and `worker`: processor seconds a run, the latter with the run's own processes.
    """
    offset, served, worked = bench.log.stat().st_size, bench.busy(0), bench.busy(1)
    states = _watch(bench, deployment, runs)
    # A run is over before its process is, whose processor time is known when that has ended.
    bench.wait_for_runs()
    asked = bench.requests_since(offset)
    served, worked = bench.busy(0) - served, bench.busy(1) - worked
    ended = {run: each for run, each in states.items() if each and each[-1][0] in OVER}
    timed = [_moments(bench.folder / "moments" / run, each) for run, each in ended.items()]
    whole = [each for each in timed if each is not None]
    seconds = max(each["ended"] for each in whole) - min(each["taken"] for each in whole) if whole else 0.0
    parts = {
        "its process starts and imports": _between(whole, "taken", "loaded"),
        "told to be Running": _between(whole, "loaded", "running"),
        "the flow itself": _between(whole, "running", "ended"),
    }
    busy = statistics.fmean(each["ended"] - each["taken"] for each in whole) if whole else 0.0
    return {
        "runs": len(runs),
        "ended": dict(Counter(each[-1][0] for each in ended.values())),
        "lost": len(runs) - len(ended),
        "seconds": seconds,
        "seconds_a_run": seconds / len(runs),
        "parts": parts,
        # Of a place for one run: what is left of its time is between two runs.
        "between_runs": at_once * seconds / len(runs) - busy,
        "requests_in_all": asked.routes.total(),
        "routes": {route: count / len(runs) for route, count in asked.routes.most_common()},
        "sockets": asked.sockets / len(runs),
        "refused": asked.refused,
        "server": served / len(runs),
        "worker": worked / len(runs),
    }


def _watch(bench: Bench, deployment: str, runs: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """Until all have ended, or none does any more; the states of each, in their order, with their times."""
    over, changed = 0, time.monotonic()
    asked = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": OVER}}}}
    while over < len(runs) and time.monotonic() - changed < STALL_SECONDS:
        time.sleep(LOOK_SECONDS)
        if (now := bench.ask("/flow_runs/count", asked)) > over:
            over, changed = now, time.monotonic()
    found: dict[str, list[tuple[str, float]]] = {}
    for run in runs:
        answer = bench.http.get("/flow_run_states/", params={**MINE, "flow_run_id": run})
        states = answer.json() if answer.is_success else []
        found[run] = sorted(((each["type"], _time(each["timestamp"])) for each in states), key=lambda each: each[1])
    return found


def _moments(file: Path, states: Sequence[tuple[str, float]]) -> dict[str, float] | None:
    """When the worker took a run, its process had imported the flow, the run was Running, and ended; None where one is missing."""
    first = dict(reversed(states))
    if not file.exists() or not {"PENDING", "RUNNING"} <= first.keys():
        return None
    loaded = float(file.read_text(encoding="utf-8"))
    return {"taken": first["PENDING"], "loaded": loaded, "running": first["RUNNING"], "ended": states[-1][1]}


def _between(runs: Sequence[Mapping[str, float]], one: str, other: str) -> float:
    return statistics.median(each[other] - each[one] for each in runs) if runs else 0.0


def _idle(bench: Bench, seconds: float) -> dict[str, float]:
    """What the worker asks for and what the server spends while nothing is queued."""
    offset, served = bench.log.stat().st_size, bench.busy(0)
    time.sleep(seconds)
    asked = bench.requests_since(offset).routes.total()
    return {"requests_a_second": asked / seconds, "server": (bench.busy(0) - served) / seconds}


def _heartbeats(bench: Bench) -> dict[str, float]:
    """Heartbeats of runs, each a request, from some clients at once: what the server bears of them."""
    wanted = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}, "limit": 1}
    if not (kept := bench.ask("/events/filter", wanted)["events"]):
        return {}
    now = datetime.now(UTC).isoformat()
    event = {name: kept[0][name] for name in ("event", "resource", "related", "payload")}
    return bench.ask_all(
        [("/events", [{**event, "id": str(uuid.uuid4()), "occurred": now}]) for _ in range(HEARTBEATS)]
    )[1]


@contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
        yield connection


def size(database: Path) -> int:
    """Bytes of an SQLite database that are in use, those in its log too."""
    with _reading(database) as reading:
        pages, free, each = (
            reading.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
    return (pages - free) * each


def count_events(database: Path) -> int:
    """Events that Prefect keeps in its database."""
    with _reading(database) as reading:
        return reading.execute("SELECT count(*) FROM events").fetchone()[0]


def _bytes_an_event(database: Path) -> float | None:
    """With what is kept to find it; None where this SQLite does not say."""
    with _reading(database) as reading:
        try:
            kept = reading.execute("SELECT sum(pgsize) FROM dbstat WHERE name LIKE '%event%'").fetchone()[0]
        except sqlite3.OperationalError:  # compiled without the table of its pages
            return None
    return kept / max(count_events(database), 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _time(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def show(found: Mapping[str, Any]) -> None:
    """Print what `measure` found."""
    queued, idle, beats = found["queued"], found["idle"], found["heartbeats"]
    print(
        "\n| a run of | runs | Completed | Failed | Crashed | lost | s a run | processor, s | server's processor, s |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    drained = {name: found[name] for name in IMPORTS if name in found}
    for name, said in drained.items():
        counts = " | ".join(str(said["ended"].get(state, 0)) for state in ("COMPLETED", "FAILED", "CRASHED"))
        numbers = f"{said['seconds_a_run']:.2f} | {said['worker']:.2f} | {said['server']:.3f}"
        print(f"| {name} | {said['runs']} | {counts} | {said['lost']} | {numbers} |")
    print(f"\n| seconds of one run's place, median | {' | '.join(drained)} |")
    print(f"|---|{'---:|' * len(drained)}")
    for part in next(iter(drained.values()))["parts"]:
        print(f"| {part} | {' | '.join(format(said['parts'][part], '.2f') for said in drained.values())} |")
    print(
        f"| between two runs, mean | {' | '.join(format(said['between_runs'], '.2f') for said in drained.values())} |"
    )
    said = found["nothing"]
    print(
        f"\nA run of nothing: {said['requests']:.1f} requests ({said['refused']} of all refused and made again), "
        f"{said['sockets']:.1f} connections for events, {said['events']:.1f} events, {said['bytes']:,.0f} bytes"
    )
    for route, count in said["routes"].items():
        print(f"  {count:6.2f}  {route}")
    if said["event_bytes"] is not None:
        print(f"An event: {said['event_bytes']:,.0f} bytes of the database")
    print(
        f"An idle worker: {idle['requests_a_second']:.3f} requests a second; "
        f"the server beside it: {100 * idle['server']:.1f} % of a core"
    )
    for what, bore in {"queueing": queued, "heartbeats": beats}.items():
        if bore:
            print(
                f"{what}, {CLIENTS} clients at once: {bore['a_second']:.1f} requests a second, {1000 * bore['processor_seconds']:.1f} ms "
                f"of the server's processor each, {bore['refused']} refused and made again"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--real", type=int, default=8, help="runs of the flow that imports what a candidate's does")
    parser.add_argument("--poll", type=float, help="seconds between the worker's questions; by default Prefect's own")
    parser.add_argument("--direct", action="store_true", help="start Python once for a run")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    load = [round(each, 1) for each in os.getloadavg()]
    with tempfile.TemporaryDirectory(prefix="dspy-toolkit-queue-") as folder:
        try:
            found = measure(Path(folder), given.runs, given.at_once, given.real, poll=given.poll, direct=given.direct)
        except KeyboardInterrupt:
            sys.exit(130)
        if any(said["ended"] != {"COMPLETED": said["runs"]} for name, said in found.items() if name in IMPORTS):
            print(Path(folder, "worker.log").read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
    show(found)
    after = [round(each, 1) for each in os.getloadavg()]
    print(f"\n{given.at_once} runs at once, {os.cpu_count()} cores, load {load} before and {after} after")
    asked = {name: value for name, value in vars(given).items() if name != "json"}
    write(given.json, "queue", {**found, **asked, "load": [load, after]})


if __name__ == "__main__":
    main()
