"""What watches a run ends its server, and says that the run has crashed. Prefect's own server is in the system tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows import temporary_server

SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        print(self.path, body, flush=True)
        self.send_response(201)
        self.end_headers()

server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
sys.stdin.readline()
"""
RUN = """
import os, subprocess, sys
from flows import temporary_server

class Run:
    id = "12-34"

temporary_server.watch_run(None, Run(), None)
print(os.environ[temporary_server.MARK], flush=True)
sys.stdin.read()
"""


def serving(port: int) -> str:
    """A server that names its port on its command line, as Prefect's does."""
    head, _, _ = SERVER.rpartition("server = ")
    return (
        f'{head}server = HTTPServer(("127.0.0.1", {port}), Handler)\nprint("up", flush=True)\nserver.serve_forever()\n'
    )


def test_a_killed_run_leaves_no_server_and_is_known_to_have_crashed(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    environment.pop("PREFECT_API_URL", None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", RUN], env=environment, **pipes) as run:
        mark = run.stdout.readline().strip()
        mine = {**environment, temporary_server.MARK: mark, "PREFECT__SERVER_EPHEMERAL": "1"}
        command = [sys.executable, "-c", serving(port), "--port", str(port)]
        with (
            subprocess.Popen(command, env=mine, **pipes) as server,
            subprocess.Popen([*command[:2], SERVER], env={**mine, temporary_server.MARK: "another"}, **pipes) as other,
        ):
            assert server.stdout.readline() == "up\n" and other.stdout.readline()
            run.kill()
            assert server.wait(60) != 0
            told = server.stdout.read()
            assert "/api/flow_runs/12-34/set_state" in told and '"CRASHED"' in told
            assert other.poll() is None  # somebody else's
            other.communicate("\n", timeout=30)


def test_where_a_server_is_named_nothing_is_watched(monkeypatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(temporary_server, "_watcher", None)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"}):
        temporary_server.watch_this_process()
    assert temporary_server._watcher is None


@pytest.mark.system
def test_a_run_that_ends_by_itself_dismisses_what_watches_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    environment.pop("PREFECT_API_URL", None)
    code = RUN.replace("sys.stdin.read()", "print(temporary_server._watcher.pid)")
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not psutil.pid_exists(int(ended.stdout.split()[1]))
