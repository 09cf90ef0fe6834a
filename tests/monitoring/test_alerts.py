"""Alerts end to end: a webhook and a mail server on loopback get them, repeated ones are folded, all are kept."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import SecretStr

from dspy_toolkit.errors import SettingsError
from dspy_toolkit.monitoring import alerts
from dspy_toolkit.settings import Settings

NOW = datetime(2026, 11, 27, 1, tzinfo=UTC)


@contextmanager
def webhook(fail: int = 0) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A receiver of JSON, which refuses the first `fail` messages."""
    got: list[dict[str, str]] = []
    left = [fail]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if left[0]:
                left[0] -= 1
                self.send_error(503)
                return
            got.append(json.loads(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"json://127.0.0.1:{port}/", got


@contextmanager
def mail_server() -> Iterator[tuple[str, list[str]]]:
    """As much of SMTP as a client needs to hand over a mail."""
    got: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline().strip().upper():
                if line.startswith(b"DATA"):
                    self.wfile.write(b"354 go on\r\n")
                    lines = list(iter(self.rfile.readline, b".\r\n"))
                    got.append(b"".join(lines).decode())
                self.wfile.write(b"221 bye\r\n" if line.startswith(b"QUIT") else b"250 well\r\n")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with running(Server(("127.0.0.1", 0), Handler)) as port:
        yield f"mailto://127.0.0.1:{port}?from=toolkit@example.org&to=ada@example.org&mode=insecure", got


@contextmanager
def running(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]  # type: ignore[index]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def telling(home: Settings, *targets: str) -> Settings:
    told = home.alerts.model_copy(update={"targets": tuple(map(SecretStr, targets))})
    return home.model_copy(update={"alerts": told})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "PAUSES", (0.0, 0.0))


def test_both_kinds_of_target_get_it_and_repeated_ones_are_folded(home: Settings) -> None:
    with webhook() as (hook, posted), mail_server() as (mail, mailed):
        settings = telling(home, hook, mail)
        for minutes in (0, 1, 2, 3):
            alerts.receive(settings, "failed optimize-program", f"at {minutes}", now=NOW + timedelta(minutes=minutes))
        alerts.receive(settings, "late optimize-program", "another", now=NOW + timedelta(minutes=4))
        last = alerts.receive(settings, "failed optimize-program", "again", now=NOW + timedelta(minutes=70))
    assert last.delivered == (True, True)
    assert [each["title"] for each in posted] == [
        "dspy-toolkit: failed optimize-program",
        "dspy-toolkit: late optimize-program",
        "dspy-toolkit: failed optimize-program",
    ]
    assert "3 more of these since the last message" in posted[-1]["message"]
    assert len(mailed) == 3 and "Subject: dspy-toolkit: failed optimize-program" in mailed[0]
    kept = alerts.read(settings)
    assert [each.sent for each in kept] == [True, False, False, False, True, True]


def test_a_condition_that_lasts_is_told_once_a_day_and_another_one_at_once(home: Settings) -> None:
    with webhook() as (hook, posted):
        settings = telling(home, hook)
        for hour in range(30):
            at = NOW + timedelta(hours=hour)
            alerts.receive(settings, "regression questions@2", f"hour {hour}", now=at)
            alerts.receive(settings, "failed optimize-program", f"hour {hour}", now=at)  # an event each time
            if hour == 5:
                alerts.receive(settings, "regression questions@3", "another version", now=at)
    said = [(each["title"].removeprefix("dspy-toolkit: "), each["message"]) for each in posted]
    assert [message for title, message in said if title == "regression questions@2"] == [
        "hour 0",
        "hour 24\n23 more of these since the last message.",
    ]
    assert ("regression questions@3", "another version") in said
    assert sum(title == "failed optimize-program" for title, _ in said) == 30


def test_a_condition_of_which_nobody_was_reached_is_told_again_within_the_day(home: Settings) -> None:
    with webhook() as (hook, _):
        pass  # and it is gone
    assert alerts.receive(telling(home, hook), "disk-low here", "0.1 GB", now=NOW).delivered == (False,)
    with webhook() as (hook, posted):
        again = [
            alerts.receive(telling(home, hook), "disk-low here", "0.1 GB", now=NOW + timedelta(hours=hours))
            for hours in (1, 2, 3)
        ]
    assert [each.sent for each in again] == [True, False, False] and len(posted) == 1


def test_what_lasts_is_among_what_flows_tell() -> None:
    from tasks.events import KINDS

    assert set(alerts.LASTING) < set(KINDS)


def test_what_was_folded_is_forgotten_before_what_was_sent(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "KEPT", 4)
    for hour in range(8):
        alerts.receive(home, "drift questions@2 text", f"hour {hour}", now=NOW + timedelta(hours=hour))
    assert [each.body for each in alerts.read(home)] == ["hour 0", "hour 5", "hour 6", "hour 7"]
    for number in range(6):
        alerts.receive(home, f"failed {number}", "", now=NOW)
    assert [each.subject for each in alerts.read(home)] == [f"failed {number}" for number in range(2, 6)]


def test_a_target_that_is_away_for_a_moment_is_asked_again(home: Settings) -> None:
    with webhook(fail=2) as (hook, posted):
        assert alerts.receive(telling(home, hook), "a", "b").delivered == (True,)
    assert len(posted) == 1


def test_a_target_that_stays_away_loses_nothing(home: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with webhook() as (hook, _):
        pass  # and it is gone
    alert = alerts.receive(telling(home, hook), "a", "b")
    assert (alert.delivered, alerts.read(home)) == ((False,), [alert])
    assert "number 1" in caplog.text and hook not in caplog.text


def test_an_address_that_is_none_is_one_clear_error_and_the_alert_is_kept(home: Settings) -> None:
    with pytest.raises(SettingsError, match="number 1, is no address"):
        alerts.receive(telling(home, "nonsense"), "a", "b")
    assert [each.subject for each in alerts.read(home)] == ["a"]


def test_without_targets_it_is_kept(home: Settings) -> None:
    assert alerts.receive(home, "a", "\x1b[31mred").body == alerts.read(home)[0].body
    assert "\x1b" not in alerts.read(home)[0].body


def test_the_addresses_are_not_shown(home: Settings) -> None:
    assert "secret-word" not in repr(telling(home, "slack://secret-word"))
