"""Our own pages, on loopback: each project over time, Prometheus' figures, and the place where alerts arrive.

    GET  /               the projects, and where everything else is
    GET  /projects/NAME  a project's optimizations over time, and what monitoring saw since
    GET  /metrics        the same for Prometheus
    GET  /healthz        `ok`
    POST /alerts         {"subject", "body"}, with the token of this home; folded, kept, passed on

It changes nothing but the file of alerts. Everything is read from MLflow anew, at most every few seconds.

Not covered: figures of serving and of engines, which the process that serves exposes at its own `/metrics`.
"""

from __future__ import annotations

import argparse
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from deployments.places import HOST, Places, Ports
from dspy_toolkit.errors import ToolkitError
from dspy_toolkit.monitoring.alerts import read, receive
from dspy_toolkit.printable import printable
from dspy_toolkit.report.over_time import Look, Night, page

log = logging.getLogger(__name__)

REREAD_SECONDS = 5.0
LONGEST = 64 * 1024
"""Bytes of an alert."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
PREFIX = "dspy_toolkit_program_"
GAUGES = {
    "sealed_score": "The candidate's score on the sealed rows in the last optimization that opened them.",
    "validation_score": "The candidate's score on validation rows in the last optimization.",
    "optimizations": "Optimizations that came to a decision.",
    "promotions": "Of those, promotions.",
    "lm_calls": "Logical LM calls of the last optimization.",
    "served_score": "Mean score of the labelled replies of the live version.",
    "served_rows": "Those replies.",
    "promoted_score": "The live version's score when it was promoted.",
    "e_value": "Evidence that the live version has fallen; an alarm from 1 / (monitor.false_alarm_rate / 2).",
    "seconds_p95": "Seconds of a reply that 95 % of them do not exceed.",
    "drifted_fields": "Inputs and outputs that have drifted.",
    "looked_timestamp_seconds": "When monitoring looked last.",
}


class Data:
    """What the pages show, read from MLflow."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._lock = threading.Lock()
        self._read: dict[str, tuple[float, Any]] = {}

    def projects(self) -> list[str]:
        """Those that something is recorded of."""
        from dspy_toolkit.tracking.nights import projects_with_nights

        return self._kept("projects", lambda: projects_with_nights(self.places.settings))

    def nights(self, project: str) -> list[Night]:
        """The oldest first."""
        from dspy_toolkit.tracking.nights import past_nights

        return self._kept(
            f"nights {project}", lambda: [Night(**each) for each in past_nights(self.places.settings, project)]
        )

    def looks(self, project: str) -> list[Look]:
        """The oldest first."""
        from dspy_toolkit.tracking.looks import past_looks

        def found() -> list[Look]:
            return [
                Look(
                    when=look.when,
                    version=look.version,
                    mean=look.metrics.get("served_mean"),
                    high=look.metrics.get("served_high"),
                    n=int(look.metrics.get("served_rows", 0)),
                    reference=look.metrics.get("reference"),
                    e_value=look.metrics.get("served_e_value", 1.0),
                    drifted=look.drifted,
                )
                for look in past_looks(self.places.settings, project)
            ]

        return self._kept(f"looks {project}", found)

    def seconds_p95(self, project: str) -> float | None:
        """Of the last look."""
        from dspy_toolkit.tracking.looks import past_looks

        last = self._kept(f"last {project}", lambda: past_looks(self.places.settings, project, 1))
        return last[-1].metrics.get("seconds_p95") if last else None

    def _kept(self, name: str, find: Callable[[], Any]) -> Any:
        with self._lock:
            at, value = self._read.get(name, (0.0, None))
            if time.monotonic() - at > REREAD_SECONDS or not at:
                value = find()
                self._read[name] = time.monotonic(), value
            return value


def index(data: Data) -> str:
    """The first page."""
    places = data.places
    rows = "".join(f'<li><a href="/projects/{escape(name)}">{escape(name)}</a></li>' for name in data.projects())
    others = {"Prefect": places.server, "MLflow": places.mlflow, "Serving": places.serving}
    links = "".join(f'<li><a href="{escape(address)}">{escape(name)}</a></li>' for name, address in others.items())
    last = "".join(
        f"<tr><td>{alert.at:%Y-%m-%d %H:%M}</td><td>{escape(alert.subject)}</td><td><pre>{escape(alert.body)}</pre></td></tr>"
        for alert in reversed(read(places.settings)[-20:])
    )
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>dspy_toolkit</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:1rem/1.5 system-ui,sans-serif;margin:0 auto;max-width:62rem;padding:1.5rem 1rem;color-scheme:light dark}}
table{{border-collapse:collapse}}td,th{{border-top:1px solid #8886;padding:.3rem .6rem;text-align:left;vertical-align:top}}
td:first-child,td:nth-child(2){{white-space:nowrap}}pre{{margin:0;white-space:pre-wrap;font:inherit}}</style></head><body>
<h1>dspy_toolkit</h1>
<h2>Projects over time</h2>{f"<ul>{rows}</ul>" if rows else "<p>Nothing is recorded yet.</p>"}
<h2>Other pages</h2><ul>{links}<li><a href="/metrics">Figures for Prometheus</a></li></ul>
<h2>Alerts</h2>{f"<table><tr><th>when</th><th>what</th><th>message</th></tr>{last}</table>" if last else "<p>None.</p>"}
</body></html>"""


def metrics(data: Data) -> bytes:
    """All projects, for Prometheus."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    families = {name: Gauge(PREFIX + name, about, ["project"], registry=registry) for name, about in GAUGES.items()}
    for project in data.projects():
        for name, value in _figures(data, project):
            if value is not None:
                families[name].labels(project).set(value)
    sent = Gauge("dspy_toolkit_alerts", "Alerts that are kept, by whether they were sent.", ["sent"], registry=registry)
    alerts = read(data.places.settings)
    for said in (True, False):
        sent.labels(str(said).lower()).set(sum(each.sent is said for each in alerts))
    return generate_latest(registry)


def _figures(data: Data, project: str) -> Iterator[tuple[str, float | None]]:
    nights, looks = data.nights(project), data.looks(project)
    opened = [night for night in nights if night.sealed is not None]
    yield "optimizations", len(nights)
    yield "promotions", sum(night.outcome == "promoted" for night in nights)
    if opened:
        yield "sealed_score", opened[-1].sealed
    if nights:
        yield "validation_score", nights[-1].val
        yield "lm_calls", nights[-1].lm_calls
    if looks:
        yield "served_score", looks[-1].mean
        yield "served_rows", looks[-1].n
        yield "promoted_score", looks[-1].reference
        yield "e_value", looks[-1].e_value
        yield "drifted_fields", len([name for name in looks[-1].drifted.split(", ") if name])
        yield "looked_timestamp_seconds", looks[-1].when.timestamp()
        yield "seconds_p95", data.seconds_p95(project)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    data: ClassVar[Data]
    protocol_version = "HTTP/1.1"
    server_version = "dspy-toolkit"
    sys_version = ""

    def do_GET(self) -> None:
        """Show a page."""
        if not self._from_here():
            return
        path = unquote(urlsplit(self.path).path)
        try:
            if path == "/healthz":
                self._answer(200, b"ok\n", "text/plain")
            elif path == "/metrics":
                self._answer(200, metrics(self.data), "text/plain; version=0.0.4; charset=utf-8")
            elif path == "/":
                self._answer(200, index(self.data).encode(), "text/html; charset=utf-8")
            elif (name := path.removeprefix("/projects/")) in self.data.projects():
                links = [
                    ("All projects", "/"),
                    ("Prefect", self.data.places.server),
                    ("MLflow", self.data.places.mlflow),
                ]
                made = page(name, self.data.nights(name), self.data.looks(name), links)
                self._answer(200, made.encode(), "text/html; charset=utf-8")
            else:
                self._answer(404, b"There is no such page.\n", "text/plain")
        except ToolkitError as error:
            self._answer(503, f"{error}\n".encode(), "text/plain; charset=utf-8")

    def do_POST(self) -> None:
        """Take an alert."""
        if not self._from_here():
            return
        length = int(self.headers.get("Content-Length") or 0)
        if urlsplit(self.path).path != "/alerts" or not 0 < length <= LONGEST:
            self.close_connection = True
            self._answer(404 if length <= LONGEST else 413, b"Only alerts are taken.\n", "text/plain")
            return
        said, body = self.headers.get("Authorization") or "", self.rfile.read(length)
        if not hmac.compare_digest(said.encode(), f"Bearer {self.data.places.alerts_token}".encode()):
            self._answer(401, b"The token of this home is needed.\n", "text/plain")
            return
        try:
            given = json.loads(body)
            alert = receive(self.data.places.settings, str(given["subject"]), str(given["body"]))
        except (ValueError, KeyError, TypeError):
            self._answer(400, b'Send {"subject": "...", "body": "..."}.\n', "text/plain")
        except ToolkitError as error:
            log.warning("%s", error)
            self._answer(500, f"{error}\n".encode(), "text/plain; charset=utf-8")
        else:
            self._answer(200, json.dumps({"sent": alert.sent}).encode(), "application/json")

    def _from_here(self) -> bool:
        """Only by loopback's own names: a page elsewhere whose name leads here is refused."""
        host = (self.headers.get("Host") or "").rpartition(":")[0] or (self.headers.get("Host") or "")
        if host in (HOST, "localhost"):
            return True
        self._answer(403, b"Ask by the name 127.0.0.1.\n", "text/plain")
        return False

    def _answer(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """One line an answer, on the standard log."""
        log.info("%s", printable(format % arguments))


def serve(places: Places, port: int) -> ThreadingHTTPServer:
    """A server that is ready for `serve_forever`.

    Args:
        places: the home, and the addresses of the other pages.
        port: 0 for any that is free.
    """
    handler = type("OurHandler", (Handler,), {"data": Data(places)})
    return ThreadingHTTPServer((HOST, port), handler)


def main() -> None:
    """Serve until the process is ended."""
    from deployments.bootstrap import places_of

    options = argparse.ArgumentParser(prog="python -m deployments.pages")
    options.add_argument("--port", type=int, default=Ports.pages)
    port = options.parse_args().port
    serve(places_of({}), port).serve_forever()


if __name__ == "__main__":
    main()
