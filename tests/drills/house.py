"""A house: all services of `make up`, each kept running as its unit keeps it, and a deployment for each project of a drill.

Each service is a process, `python -m deployments.bootstrap run NAME`, in a temporary home and on free ports. `Unit` does what
deployments/units/dspy-toolkit@.service asks of systemd: what is left of a service that has died is killed, and the service is
started again five seconds later. The server is told what it must know by `python -m deployments.bootstrap register`. The
deployments are those of `dspy-toolkit deploy`, with the flow of `tests.drills.deployed`; the model is a server on loopback that
answers at once and by rule.

Not covered: systemd itself, `make up` (tests/system/test_make_up.py), and the schedules of prefect.yaml, which are off here.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import yaml

from deployments.bootstrap import TOLD, USED
from deployments.places import MARK, Places, Ports
from deployments.services import end_all, marked
from dspy_toolkit.cli.deploy import FILE, make_entry, whole
from dspy_toolkit.gate.ledger import Ledger
from dspy_toolkit.monitoring.alerts import read as read_alerts
from dspy_toolkit.pipeline.compare import LEDGER
from dspy_toolkit.registry import list_projects, list_versions
from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking.mlflow_client import connect, experiment_id
from dspy_toolkit.tracking.runs import PROJECT_TAG
from tests.drills.forks import ROOT
from tests.drills.optimization import end_of
from tests.flows.conftest import NAMES, answer, write_questions
from tests.lm.openai_server import OpenAIServer
from tests.monitoring.test_alerts import webhook
from tests.system.postgres import free_port

RESTART_SECONDS = 5.0
"""RestartSec of the unit."""
SECONDS = 480.0
"""The longest that anything here may take, on a busy machine."""
PASSWORD = "toolkit:a-word-that-nobody-may-see"
UNIT = "DRILL_UNIT"
"""The variable by which the processes of a unit are known, in the place of systemd's control group."""
SYLLABLES = ["ba", "do", "fe", "gi", "ku", "la", "mo", "ne", "pi", "ro", "sa", "tu", "va", "ze"]
LASTING = ("champion", "replaced", "outcome", "recorded", "openings", "placements", "left running", "damaged objects")
"""Of `optimization.end_of`: what is the same where another model of the same answers is asked elsewhere."""
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

Run = dict[str, Any]
"""A flow run, as Prefect's API gives it."""


def write_project(folder: Path, name: str) -> Path:
    """The project of the flows' tests under another name, and with names of its own in its rows; the TOML file.

    Projects that share rows would share what the sealed test may spend.
    """
    folder.mkdir()
    toml = write_questions(folder)
    toml.write_text(toml.read_text().replace('"questions"', f'"{name}"'))
    chance, others = random.Random(name), set[str]()
    while len(others) < len(NAMES):
        others.add("".join(chance.choices(SYLLABLES, k=3)).capitalize())
    called = dict(zip(NAMES, sorted(others), strict=True))
    with (folder / "questions.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    with (folder / "questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *([" ".join(called.get(w, w) for w in text.split()), x] for text, x in rows)])
    return toml


def as_fake(body: dict[str, Any]) -> Any:
    """What the fake model of the flows' tests would say to this request."""
    return answer(SimpleNamespace(messages=[SimpleNamespace(content=str(m["content"])) for m in body["messages"]]))  # type: ignore[arg-type]


class Unit:
    """A service that is kept running."""

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], folder: Path, *, group: bool = True
    ) -> None:
        """Start it.

        Args:
            name: for people, and for its log.
            command: what systemd would start.
            environment: all of it.
            folder: where the log goes.
            group: whether what is left of it is killed when it has died, as systemd does.
        """
        self.name, self.group, self.log = name, group, folder / f"{name}.log"
        self._command, self._mark = command, f"{folder}:{name}"
        self._environment = {**environment, UNIT: self._mark}
        self._over = threading.Event()
        self.process = self._begin()
        self._keeper = threading.Thread(target=self._keep, name=f"unit {name}", daemon=True)
        self._keeper.start()

    def _begin(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _keep(self) -> None:
        while not self._over.wait(0.1):
            if self.process.poll() is None:
                continue
            if self.group:
                self._kill_rest()
            if not self._over.wait(RESTART_SECONDS):
                self.process = self._begin()

    def _kill_rest(self) -> None:
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # another user's, or over by now
                if process.environ().get(UNIT) == self._mark:
                    process.kill()

    def kill(self) -> float:
        """SIGKILL, of its main process alone; when that was, by `time.monotonic`."""
        self.process.kill()
        return time.monotonic()

    def stop(self) -> None:
        """End it for good."""
        self._over.set()
        self._keeper.join(30)
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self._kill_rest()
        self.process.wait(30)

    def words(self, count: int = 3000) -> str:
        """The end of its log."""
        return f"{self.name}: {self.log.read_text(errors='replace')[-count:]}"


@dataclass
class Held:
    """A run that waits where its fault is."""

    run: str
    project: str
    go_on: Callable[[], None]


@dataclass
class House:
    """Its services, and its server's API."""

    folder: Path
    places: Places
    environment: dict[str, str]
    told: list[dict[str, str]]
    """What the webhook got."""
    arrived: list[datetime] = field(default_factory=list)
    """When it got each."""
    units: dict[str, Unit] = field(default_factory=dict)
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the names of the projects."""

    @property
    def settings(self) -> Settings:
        return self.places.settings

    def start(self, name: str, *, group: bool = True, command: list[str] | None = None, **more: str) -> Unit:
        """Start a unit, by default as the units in deployments/units do."""
        words = command or [sys.executable, "-m", "deployments.bootstrap", "run", name]
        self.units[name] = Unit(name, words, self.environment | more, self.folder, group=group)
        return self.units[name]

    def stop(self, name: str) -> None:
        """End a unit for good."""
        self.units.pop(name).stop()

    def wait(self, there: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        """What `there` gives, once it is true; else the ends of all logs."""
        until = time.monotonic() + seconds
        while not (found := there()):
            if time.monotonic() > until:
                ends = "\n".join(unit.words() for unit in self.units.values())
                raise AssertionError(f"{what} not within {seconds:g} s\n{ends}")
            time.sleep(0.2)
        return found

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Prefect's API, which may be away for a while."""
        name, _, password = PASSWORD.partition(":")

        def answered() -> httpx.Response | None:
            with suppress(httpx.TransportError):
                got = httpx.request(method, f"{self.places.api}{path}", json=body, auth=(name, password), timeout=20)
                return None if got.status_code >= 500 else got
            return None

        answer = self.wait(answered, f"an answer to {path}").raise_for_status()
        return answer.json() if answer.content else None

    def answers(self, address: str) -> bool:
        """Whether a page is there."""
        with suppress(httpx.HTTPError):
            return httpx.get(address, timeout=10).status_code == 200
        return False

    def begin(self, project: str, **parameters: Any) -> str:
        """Ask for a run of a project's deployment, at once; its id."""
        path = f"/deployments/{self.deployments[project]['id']}/create_flow_run"
        return self.ask("POST", path, {"parameters": parameters})["id"]

    def hold(self, **places: str) -> list[Held]:
        """Begin a run of each project at once, and wait until all are where they wait: project → `before STEP` and so on."""
        held = []
        for project, at in places.items():
            folder = self.folder / "faults" / project
            folder.mkdir()
            self.put_fault(project, at=at, wait=str(folder))
            held.append(Held(self.begin(project), project, (folder / "go").touch))

        def there() -> bool:
            for each in held:
                now = self.run(each.run)["state"]
                assert now["type"] not in OVER, f"{now}\n{self.units['worker'].words(6000)}"
            return all((self.folder / "faults" / project / "reached").exists() for project in places)

        self.wait(there, f"a run of each {places}")
        return held

    def put_fault(self, project: str, **fault: Any) -> None:
        """For the next run of the project that begins."""
        (self.folder / "faults" / f"{project}.json").write_text(json.dumps(fault))

    def run(self, run: str) -> Run:
        """A flow run."""
        return self.ask("GET", f"/flow_runs/{run}")

    def state(self, run: str) -> str:
        """The type of its state."""
        return self.run(run)["state_type"]

    def ended(self, run: str, as_: str = "COMPLETED", seconds: float = SECONDS) -> float:
        """Wait until a run has ended in a state of that type; when that was, by `time.monotonic`."""
        found = self.wait(lambda: (now := self.run(run))["state_type"] in OVER and now, f"the end of {run}", seconds)
        moment = time.monotonic()
        assert found["state_type"] == as_, f"{found['state']}\n{self.units['worker'].words(8000)}"
        return moment

    def schedule(self, project: str, on: bool = True) -> None:
        """Switch the schedule of a project's deployment, a run every minute, on or off."""
        self.switch(self.deployments[project], on)

    def switch(self, deployment: dict[str, Any], on: bool) -> None:
        """The same for any deployment, as the API gives it."""
        for each in deployment["schedules"]:
            self.ask("PATCH", f"/deployments/{deployment['id']}/schedules/{each['id']}", {"active": on})

    def runs(self, project: str) -> list[Run]:
        """Of a project's deployment, the first to begin first."""
        wanted = {"deployments": {"id": {"any_": [self.deployments[project]["id"]]}}, "limit": 200}
        found = self.ask("POST", "/flow_runs/filter", wanted)
        return sorted(found, key=lambda run: run["start_time"] or "9")

    def next_scheduled(self, projects: Iterable[str], since: datetime, seconds: float = SECONDS) -> float:
        """Wait until the first run of each schedule that began after `since` has ended well; the schedules are off then.

        Returns:
            When the last of them had, by `time.monotonic`.
        """
        first = dict.fromkeys(projects, "")

        def all_over() -> bool:
            for project, run in first.items():
                if not run:
                    begun = [each for each in self.runs(project) if each["auto_scheduled"] and each["start_time"]]
                    later = [each for each in begun if datetime.fromisoformat(each["start_time"]) > since]
                    if later:
                        first[project] = later[0]["id"]
                        self.schedule(project, False)  # the next one would only be in the way
            return all(run and self.state(run) in OVER for run in first.values())

        self.wait(all_over, f"the next run of the schedule of each {sorted(first)}", seconds)
        moment = time.monotonic()
        for run in first.values():
            self.ended(run)

        def quiet() -> bool:
            runs = [run for project in first for run in self.runs(project)]
            return all(run["state_type"] in OVER or run["state_name"] == "Scheduled" for run in runs)

        self.wait(quiet, f"the end of all runs of {sorted(first)}", seconds)
        return moment

    def alert(self, subject: str, about: str, cause: datetime) -> float:
        """Wait until the webhook has got a message; the seconds from its cause to its arrival.

        Args:
            subject: of the message, such as `crashed optimize-program`.
            about: what its text holds, such as the run's id.
            cause: when that was.
        """

        def arrived() -> list[datetime]:
            came = zip(self.told, self.arrived, strict=False)
            return [when for each, when in came if subject in each["title"] and about in each["message"]]

        return (self.wait(arrived, f"an alert: {subject}")[0] - cause).total_seconds()

    def note_arrivals(self, over: threading.Event) -> None:
        """Write down when each message has come, until it is over."""
        while not over.wait(0.1):
            while len(self.arrived) < len(self.told):
                self.arrived.append(now())

    def done(self) -> set[str]:
        """All that was reported done: runs that completed, records that were finished, versions, alerts."""
        runs = [run["id"] for name in self.deployments for run in self.runs(name) if run["state_type"] == "COMPLETED"]
        mlflow = connect(self.settings)
        where = [experiment_id(mlflow, self.settings)]
        recorded = mlflow.search_runs(where, "attributes.status = 'FINISHED'", max_results=1000)
        versions = [
            f"{name} {each.version} {each.program_sha256}"
            for name in list_projects(self.settings)
            for each in list_versions(self.settings, name)
        ]
        alerts = [f"{alert.at} {alert.subject}" for alert in read_alerts(self.settings)]
        return {*runs, *(each.info.run_id for each in recorded), *versions, *alerts}

    def end(self, project: str) -> dict[str, Any]:
        """`optimization.end_of`, of one project among several."""
        openings = [each for each in Ledger(self.settings.path(LEDGER)).openings() if each.grant.project == project]
        return end_of(self.settings, project) | {
            "openings": [[each.grant.candidate, each.grant.champion, each.outcome] for each in openings],
            "left running": self.left_running(project),
        }

    def left_running(self, project: str) -> int:
        """The MLflow runs of a project that nobody has closed."""
        mlflow = connect(self.settings)
        wanted = f"tags.{PROJECT_TAG} = '{project}'"
        found = mlflow.search_runs([experiment_id(mlflow, self.settings)], wanted, max_results=1000)
        return sum(run.info.status not in ("FINISHED", "FAILED") for run in found)


def ready(house: House, names: Iterable[str]) -> None:
    """Wait for units to answer."""
    places, pages = house.places, {}
    pages["server"] = f"{places.api}/health"
    pages["mlflow"] = f"http://127.0.0.1:{places.ports.mlflow}/health"
    pages["pages"] = f"{places.pages}/healthz"
    pages["serving"] = f"{places.serving}/readyz"
    for name in names:
        house.wait(lambda name=name: house.answers(pages[name]), f"an answer of {name}")


@contextmanager
def house(
    folder: Path, names: Iterable[str], empty_mlflow: Path, database: str = "", **environment: str
) -> Iterator[House]:
    """Everything up but serving, which has nothing to serve yet.

    Args:
        folder: for the home and all else; made here.
        names: of the projects, each of which has a deployment.
        empty_mlflow: a database with MLflow's tables.
        database: `postgresql://USER:PASSWORD@HOST:PORT`, with the databases `prefect` and `mlflow`. All but MLflow's server then
            reach MLflow through that; without, both databases are files of the home, as `make up` has them.
        environment: beside the usual one, of all.
    """
    home = folder / "home"
    home.mkdir(mode=0o700, parents=True)
    (folder / "faults").mkdir()
    if not database:
        shutil.copy(empty_mlflow, home / "mlflow.db")
    ports = Ports(*(free_port() for _ in range(4)))
    tracking_uri = f"http://127.0.0.1:{ports.mlflow}" if database else ""
    projects = {name: str(write_project(folder / name, name)) for name in names}
    settings = Settings(
        home=home,
        projects={name: {"location": place} for name, place in projects.items()},
        **({"registry": {"tracking_uri": tracking_uri}} if tracking_uri else {}),
    )
    places = Places(ROOT, settings, ports)
    for name in (TOLD, USED):  # as the last `make up` would have left them
        file = settings.path("services", name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(vars(places.ports)))
    entries = [make_entry(settings, name, "* * * * *", "UTC", "120", "bootstrap", name) for name in projects]
    for entry in entries:
        entry["entrypoint"] = "tests/drills/deployed.py:optimize_program"
        entry["schedules"][0]["active"] = False
    settings.path(FILE).write_text(yaml.safe_dump(whole(entries)))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DSPY_TOOLKIT_"))}
    with OpenAIServer(as_fake) as model, webhook() as (hook, told):
        ours = {
            "HOME": str(home),
            "LM__MODEL": "openai/NAME",
            "LM__API_BASE": model.address,
            "LM__API_KEY": "none",
            "OBSERVE__PROGRESS": "false",
            "ALERTS__TARGETS": json.dumps([hook]),
            "ALERTS__FOLD_MINUTES": "0",
            **{f"PROJECTS__{name.upper()}__LOCATION": place for name, place in projects.items()},
            **({"REGISTRY__TRACKING_URI": tracking_uri} if tracking_uri else {}),
        }
        made = House(
            folder,
            places,
            kept
            | {f"DSPY_TOOLKIT_{name}": value for name, value in ours.items()}
            | {MARK: str(home), "PREFECT_API_AUTH_STRING": PASSWORD, "DRILL_FAULTS": str(folder / "faults")}
            | environment,
            told,
        )
        over = threading.Event()
        threading.Thread(target=made.note_arrivals, args=(over,), daemon=True).start()
        try:
            at = database.replace("postgresql:", "postgresql+asyncpg:")
            made.start("server", **({"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"{at}/prefect"} if database else {}))
            at = database.replace("postgresql:", "postgresql+psycopg:")
            made.start("mlflow", **({"DSPY_TOOLKIT_REGISTRY__TRACKING_URI": f"{at}/mlflow"} if database else {}))
            made.start("pages")
            ready(made, ("server", "mlflow", "pages"))
            command = [sys.executable, "-m", "deployments.bootstrap", "register"]
            done = subprocess.run(command, env=made.environment, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            for each in made.ask("POST", "/deployments/filter", {"limit": 200}):
                if each["name"] in projects:
                    made.deployments[each["name"]] = each
                else:
                    made.switch(each, False)
            assert made.deployments.keys() == projects.keys()
            made.start("worker")
            yield made
        finally:
            over.set()
            for name in list(made.units):
                made.stop(name)
            end_all(marked(home))


def now() -> datetime:
    """The time of the day, here."""
    return datetime.now(UTC)
