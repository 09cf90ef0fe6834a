"""Everything on one machine: `make up`, `make down`, `make status`.

    up        server, MLflow's and our own pages, serving; then what the server must know; then the worker. What runs is left alone.
    status    what runs, where, since when; exit code 1 when something is not well
    down      runs are cancelled first; then everything that `up` started is ended, and nothing else
    register  tells a server that somebody else started, such as a container, what `up` tells its own

The services outlive the shell. Prefect's commands find the server from any shell in this folder, by the file prefect.toml.

Not covered: starting again what has died (run `make up` again, or install the units of deployments/units), and other machines
(docs/scaling.md).
"""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from deployments.places import HOST, MARK, POOL, Places, Ports
from deployments.services import LOOK_SECONDS, Service, end_all, marked, stop_all
from dspy_toolkit.cli.boundary import boundary, show_log
from dspy_toolkit.durable import make_home, write_file
from dspy_toolkit.errors import SettingsError, nearest
from dspy_toolkit.locks import held
from dspy_toolkit.settings import load_settings
from dspy_toolkit.store import canonical_json

CLONE = Path(__file__).resolve().parents[1]
UP_SECONDS = 900.0
"""For all of it, on a machine that has much else to do; on an idle one it is a matter of a minute."""
ANSWER_SECONDS = 300.0
"""For a server to answer that `register` or `down` needs."""
RUNS_AT_ONCE = 4
"""Of one worker. Each is a process that takes some hundred megabytes, and one at a time has the accelerator."""
TOLD, USED = "ports.json", "ports-in-use.json"
"""In `home/services`: the ports that were chosen on the command line, and all ports while it is up."""
ORDER = ("server", "mlflow", "pages", "serving", "worker")
"""As `status` shows them."""
NOT_YET = "nothing is promoted yet; `make up` starts it afterwards"
DATABASE_VARIABLES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
"""By either name Prefect takes another database than `HOME/prefect/prefect.db`."""
UNDER_WAY = "SELECT count(*) FROM flow_run WHERE state_type IN ('RUNNING', 'PENDING', 'CANCELLING')"

app = App(
    name="python -m deployments.bootstrap", help="Start, look at and stop everything on this machine.", version_flags=[]
)


def _port(variable: str) -> Parameter:
    return Parameter(env_var=variable)


ServerPort = Annotated[int | None, _port("PREFECT_SERVER_API_PORT")]
MlflowPort = Annotated[int | None, _port("MLFLOW_PORT")]
PagesPort = Annotated[int | None, _port("PAGES_PORT")]


@app.command
def up(
    *,
    server_port: ServerPort = None,
    mlflow_port: MlflowPort = None,
    serving_port: int | None = None,
    pages_port: PagesPort = None,
) -> None:
    """Start what does not run, and tell the server all that it must know. Again is as good as once.

    Args:
        server_port: Of Prefect's server and pages; as each of these where the last `up` was told to have it, else 4200.
        mlflow_port: Of MLflow's pages; else 5000.
        serving_port: Where programs answer; else `serving.port` of the settings, 8000.
        pages_port: Of our own pages; else 8090.
    """
    began = time.monotonic()
    given = {"server": server_port, "mlflow": mlflow_port, "serving": serving_port, "pages": pages_port}
    places = places_of({name: port for name, port in given.items() if port is not None})
    with alone(places):
        places.check_client_file()
        services = services_of(places)
        check_ports(places, services)
        write_file(places.folder / USED, canonical_json(vars(places.ports)))
        until = began + UP_SECONDS
        if nothing_recorded(places):
            del services["serving"]  # it would have nothing to serve, and end
        for name in ORDER[:-1]:
            if name in services:
                services[name].start(places.environment, CLONE)
        from deployments.registering import tell_all  # some seconds, while the services begin

        services["server"].wait(until)
        places.write_client_file()
        tell_all(places, pool_is_there=lambda: start_worker(places, services["worker"]))
        for name, service in services.items():
            if name != "serving" or not nothing_promoted(places):
                service.wait(until)
    print_status(places, services)
    print(
        f"\nAll of it is up, after {time.monotonic() - began:.0f} s. Prefect's pages ask for the password in {CLONE}/prefect.toml.\n"
        "Start a run, from any shell in this folder:\n  .venv/bin/prefect deployment run 'optimize-program/nightly-router'"
    )


@app.command
def register(*, pages_port: PagesPort = None, patience: float = ANSWER_SECONDS) -> None:
    """Tell the server that PREFECT_API_URL names all that `up` tells its own: pool, limit, automations, deployments.

    For a server that `up` has not started, such as the one of deployments/compose.yaml. Without PREFECT_API_URL it is the one that
    is up here. Again is as good as once, and no prefect.toml is needed or written. The server sends alerts to our pages on its own
    machine, with the token of this home: run it with the home of those pages.

    Args:
        pages_port: Of our own pages on the server's machine; else as the last `up` was told, or 8090.
        patience: Seconds for the server to answer.
    """
    named = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    places = places_of()
    if "PREFECT_API_URL" in named:
        # What the caller says of the server holds, and a password of ours is nothing for a server of somebody else.
        os.environ.pop("PREFECT_API_AUTH_STRING")
        os.environ.update(named)
    elif not (places.folder / USED).exists():
        raise SettingsError("No Prefect server is named. Set PREFECT_API_URL, or run `make up`.")
    api = os.environ["PREFECT_API_URL"].rstrip("/")
    if (address := re.fullmatch(r"https?://[^/\s:]+(?::(\d+))?/\S+", api)) is None:
        raise SettingsError(f"PREFECT_API_URL is {api!r}. Write an address such as http://server:4200/api.")
    # What an alert links to, on the server's own machine.
    at = {"server": int(address[1] or 0), "pages": pages_port}
    places = replace(places, ports=replace(places.ports, **{name: port for name, port in at.items() if port}))
    with alone(places):
        from deployments.registering import tell_all

        until = time.monotonic() + patience
        while not answers(f"{api}/health"):
            if time.monotonic() > until:
                raise SettingsError(f"No Prefect server answers at {api}. Start it, or set PREFECT_API_URL.")
            time.sleep(LOOK_SECONDS)
        tell_all(places)
    print(f"{api} knows the pool, the limit, the automations and the deployments.")


@app.command
def down() -> None:
    """Cancel what runs, then end all that `up` started. A server that is down is started for that, where runs may be under way.

    Exit code 1, and why, when runs could not be cancelled; all is ended then too.
    """
    places = places_of()
    with alone(places):
        services = services_of(places)
        try:
            count, trouble = cancel_runs(places, services), None
        except SettingsError as error:
            count, trouble = 0, error
        if count:
            print(f"{count} run{'' if count == 1 else 's'} cancelled")
        # The worker before the server, which it tells that it goes; the others need nobody.
        for name in (*stop_all([services.pop("worker")]), *stop_all(services.values())):
            print(f"{name} has ended")
        # Runs that a worker had started and could not end.
        end_all(marked(places.settings.path()))
        places.remove_client_file()
        (places.folder / USED).unlink(missing_ok=True)
        if trouble is not None:
            raise SettingsError(
                f"Runs that were under way may be Running in Prefect's database still. {trouble}\n"
                "`make up`, and then `make down`, cancels them."
            )


@app.command
def status() -> None:
    """Show what runs; exit code 1 when something is not well."""
    places = places_of()
    well = print_status(places, services_of(places))
    raise SystemExit(0 if well else 1)


@app.command
def run(service: str) -> None:
    """Be one service, in the foreground, for a unit that keeps it running: server, mlflow, pages, serving or worker.

    `make up` and `register` tell the server what it must know; this does not. Ports are those of the last `make up`.

    Args:
        service: its name.
    """
    places = places_of()
    found = services_of(places)
    if service not in found:
        raise SettingsError(f"{service!r} is no service here.{nearest(service, found)}")
    os.chdir(CLONE)
    os.environ[MARK] = places.environment[MARK]
    if service == "worker":
        say_what_was_lost(places)
    os.execv(found[service].command[0], found[service].command)  # noqa: S606  (a list that this code wrote)


def places_of(given: Mapping[str, int] | None = None) -> Places:
    """This clone, the home of the settings, and the ports.

    Args:
        given: for `up`: those that are chosen now; the others are as the last `up` was told, else as the settings say. None: those
            that it is up at, if it is.

    Raises:
        SettingsError: it is up at other ports.
    """
    settings = load_settings()
    show_log(settings)
    os.umask(0o077)  # logs and secrets are the user's alone
    make_home(settings.path())
    told, used = (settings.path("services", name) for name in (TOLD, USED))
    last: dict[str, int] = _ports(told) | dict(given or {})
    # 0, a free one, would be another at each look.
    ports = replace(Ports(serving=settings.serving.port or Ports.serving), **last)
    if used.exists():
        now = Ports(**_ports(used))
        if given is not None and ports != now:
            raise SettingsError("It is up at other ports already; `make status` shows them. Run `make down` first.")
        ports = now
    if given:
        write_file(told, canonical_json(last))
    places = Places(CLONE, settings, ports)
    os.environ.update({name: value for name, value in places.environment.items() if name != MARK})
    return places


def _ports(file: Path) -> dict[str, int]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


@contextmanager
def alone(places: Places) -> Iterator[None]:
    """One `up` or `down` at a time."""
    with held(places.folder / "lock", UP_SECONDS, SettingsError), boundary():
        yield


def services_of(places: Places) -> dict[str, Service]:
    """What this machine runs, by name, in the order of starting."""
    ports, settings = places.ports, places.settings

    def service(name: str, address: str, healthy: Callable[[], bool], *command: str) -> Service:
        return Service(name, (sys.executable, *command), address, healthy, places.folder)

    found = {
        "server": service(
            "server", places.server, lambda: answers(f"{places.api}/health"),
            "-m", "prefect", "server", "start", "--host", HOST, "--port", str(ports.server),
        )
    }  # fmt: skip
    if not settings.tracking_uri.startswith("http"):
        found["mlflow"] = service(
            "mlflow", places.mlflow, lambda: answers(f"{places.mlflow}/health"),
            "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri, "--workers", "1",
            "--host", HOST, "--port", str(ports.mlflow), "--artifacts-destination", settings.path("artifacts").as_uri(),
        )  # fmt: skip
    found["pages"] = service(
        "pages", places.pages, lambda: answers(f"{places.pages}/healthz"),
        "-m", "deployments.pages", "--port", str(ports.pages),
    )  # fmt: skip
    found["serving"] = service(
        "serving", places.serving, lambda: answers(f"{places.serving}/healthz"),
        "-c", "from dspy_toolkit.cli import main; main()", "serve", "--host", HOST, "--port", str(ports.serving),
    )  # fmt: skip
    found["worker"] = service(
        "worker", "", lambda: _online(places),
        "-m", "prefect", "worker", "start", "--pool", POOL, "--name", places.worker, "--limit", str(RUNS_AT_ONCE),
    )  # fmt: skip
    return found


def start_worker(places: Places, worker: Service) -> None:
    """Start it unless it runs; of a worker before it that was killed, the runs are looked after first."""
    if worker.process() is None:
        say_what_was_lost(places)
    worker.start(places.environment, CLONE)


def say_what_was_lost(places: Places) -> None:
    """Wait for the server, which a worker needs, and tell it which runs died with the worker before."""
    from deployments.registering import crash_lost_runs

    until = time.monotonic() + ANSWER_SECONDS
    while not answers(f"{places.api}/health"):
        if time.monotonic() > until:
            raise SettingsError(f"No Prefect server answers at {places.api}, which the worker is to ask for runs.")
        time.sleep(LOOK_SECONDS)
    if lost := crash_lost_runs(places):
        print(f"{lost} run{'' if lost == 1 else 's'} had died with the worker, and became Crashed", flush=True)


def nothing_promoted(places: Places) -> bool:
    """Whether there is no program to serve yet."""
    from dspy_toolkit.registry import champion, list_projects

    settings = places.settings
    return all(champion(settings, name).version is None for name in list_projects(settings))


def nothing_recorded(places: Places) -> bool:
    """Whether there is no registry at all yet: known without MLflow, which takes seconds to import."""
    uri = places.settings.tracking_uri
    file = uri.removeprefix("sqlite:///")
    return file != uri and not Path(file).exists()


def cancel_runs(places: Places, services: Mapping[str, Service]) -> int:
    """Cancel every run that is under way; how many. A server that is down is started where its database may have one.

    Raises:
        SettingsError: the server does not answer.
    """
    server = services["server"]
    if server.process() is None:
        if not may_have_runs(places):
            return 0
        if listens(places.ports.server):
            raise SettingsError(f"Its server is down, and something else has port {places.ports.server} of {HOST}.")
        print(
            "The server is down, and runs may be under way: it is started, so that they can be cancelled.", flush=True
        )
        server.start(places.environment, CLONE)
    server.wait(time.monotonic() + ANSWER_SECONDS)
    import httpx

    from deployments.registering import CANCEL_SECONDS, end_runs

    try:
        return end_runs(patience=CANCEL_SECONDS if services["worker"].process() is not None else 0)
    except httpx.HTTPError as error:
        raise SettingsError(f"The server did not cancel them: {error}") from None


def may_have_runs(places: Places) -> bool:
    """Whether the database of a server that is down may have runs that are under way.

    Only where it was up and has not been taken down: a flow that somebody runs by hand meanwhile has a temporary server on the same
    database, and is none of ours.
    """
    if not (places.folder / USED).exists():
        return False
    if any(os.environ.get(name) for name in DATABASE_VARIABLES):
        return True  # nobody can see into that one from here
    file = places.settings.path("prefect", "prefect.db")
    if not file.exists():
        return False
    try:
        with closing(sqlite3.connect(file)) as database:
            [(count,)] = database.execute(UNDER_WAY).fetchall()
    except sqlite3.Error:  # of a version of Prefect that keeps them otherwise
        return True
    return count > 0


def _online(places: Places) -> bool:
    from deployments.registering import worker_online

    return worker_online(places)


def check_ports(places: Places, services: dict[str, Service]) -> None:
    """Raise SettingsError where somebody else answers at a port that a service is to have."""
    for name, port in vars(places.ports).items():
        if name in services and services[name].process() is None and listens(port):
            raise SettingsError(
                f"Port {port} of {HOST} is taken by something that `make up` has not started. End it, or choose another: "
                f"`make up PORTS='--{name}-port {port + 1}'`."
            )


def answers(address: str) -> bool:
    """Whether a page is there."""
    try:
        with urllib.request.urlopen(address, timeout=10) as page:  # noqa: S310  (of http alone)
            return page.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def listens(port: int) -> bool:
    """Whether something takes connections."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def print_status(places: Places, services: dict[str, Service]) -> bool:
    """A line a service; whether all are well."""
    well = True
    for name in ORDER:
        if name not in services:
            print(f"{name:<8} {NOT_YET if name == 'serving' else f'elsewhere: {places.mlflow}'}")
            continue
        service = services[name]
        process = service.process()
        healthy = process is not None and (name != "worker" or services["server"].healthy()) and service.healthy()
        state = "up" if healthy else "down" if process is None else "not well"
        if not healthy and name == "serving" and nothing_promoted(places):
            print(f"{name:<8} {NOT_YET}")
            continue
        well = well and healthy
        since = (
            f"pid {process.pid}, since {datetime.fromtimestamp(process.create_time()):%Y-%m-%d %H:%M}"
            if process
            else ""
        )
        print(f"{name:<8} {state:<8}  {service.address:<24} {since}".rstrip())
    return well


if __name__ == "__main__":
    with boundary():
        app()
