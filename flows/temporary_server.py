"""Prefect's temporary server ends with the run that it was started for, also when that run is killed outright.

Where no Prefect server is named, Prefect starts a temporary one and stops it when the run ends. A run that is killed cannot:
the server would stay behind, and the run would be Running for ever. So a small process, this file, watches the run. It reads
a pipe that the operating system closes when the run is over, however that came; then it tells the server that the run has
crashed, and ends the server.

Not covered: a server that somebody else runs, whose own means find such runs (docs/operations.md).
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import subprocess
import sys
import urllib.request
from contextlib import suppress
from typing import Any

MARK = "FLOWS_PROCESS"
"""The environment variable by which a server is known as this process's; set when `flows` is imported."""
OVER = "over"
"""What a run says that ends by itself."""
SECONDS = 5.0
"""For the server to answer, and to end by itself."""

_watcher: subprocess.Popen[str] | None = None


def watch_this_process() -> None:
    """Have the temporary server end when this process does. Once is enough; nothing is done where a server is named."""
    global _watcher
    from prefect.settings import get_current_settings

    if _watcher is not None or get_current_settings().api.url is not None:
        return
    # A session of its own: Ctrl-C goes to the run, which may still have something to say to its server.
    command = [sys.executable, __file__, os.environ[MARK]]
    _watcher = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
    atexit.register(_dismiss, _watcher)  # before the server's own, which therefore comes first


def _dismiss(watcher: subprocess.Popen[str]) -> None:
    """The run has ended well, and Prefect has stopped its server."""
    with suppress(OSError):
        watcher.communicate(f"{OVER}\n")


def watch_run(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect's hook for a flow that begins to run: were this process killed, this run would be known to have crashed."""
    watch_this_process()
    if _watcher is not None and _watcher.stdin is not None:
        with suppress(OSError):  # somebody ended the watcher: the run goes on without
            print(flow_run.id, file=_watcher.stdin, flush=True)


def main(mark: str) -> None:
    """Wait for the end of the run that reads `mark` in its environment, then see to its servers."""
    runs = [line.strip() for line in sys.stdin]
    if runs and runs[-1] == OVER:
        return
    import psutil

    servers = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # another user's, or over by now
            found = process.environ()
            if found.get(MARK) == mark and "PREFECT__SERVER_EPHEMERAL" in found:
                servers.append(process)
    for server in servers:
        with suppress(psutil.Error):
            for run in runs:
                _crash(server.cmdline(), run)
            server.terminate()
    for server in psutil.wait_procs(servers, SECONDS)[1]:
        server.kill()


def _crash(server: list[str], run: str) -> None:
    """Tell the server of that command line that `run` has crashed. A run that has ended stays as it ended."""
    port = server[server.index("--port") + 1]
    state = {"type": "CRASHED", "name": "Crashed", "message": "The process that ran it is gone."}
    secret = base64.b64encode(os.environ.get("PREFECT_API_AUTH_STRING", "").encode()).decode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/flow_runs/{run}/set_state",
        json.dumps({"state": state, "force": False}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {secret}"},
    )
    with suppress(OSError), urllib.request.urlopen(request, timeout=SECONDS):  # noqa: S310  (it may be ending already)
        pass


if __name__ == "__main__":
    main(sys.argv[1])
