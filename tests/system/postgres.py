"""A PostgreSQL server of a test's own: made in a temporary folder, on a free port, gone afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

INSTALL = "Run `apt-get install postgresql` (Debian), `brew install postgresql` (macOS)."
USER, PASSWORD = "toolkit", "a-word-that-nobody-may-see"
START_SECONDS = 120


@contextmanager
def postgres() -> Iterator[str]:
    """`postgresql://toolkit:PASSWORD@127.0.0.1:PORT/postgres`. Skips the test, with the command, where there is no PostgreSQL."""
    programs = _programs()
    # Not below pytest's folders, which nobody but their owner may enter: PostgreSQL does not run as root.
    folder = Path(tempfile.mkdtemp(prefix="dspy-toolkit-postgres-"))
    data, given = folder / "data", folder / "password"
    given.write_text(PASSWORD)
    port = free_port()
    command, stopping = [], [str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"]
    if os.getuid() == 0:
        for path in (folder, given):
            shutil.chown(path, "postgres")
        command = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
    try:
        making = [
            "initdb",
            "-D",
            str(data),
            "-U",
            USER,
            "--auth=scram-sha-256",
            f"--pwfile={given}",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        _run([*command, str(programs / making[0]), *making[1:]], folder)
        options = f"-p {port} -h 127.0.0.1 -c unix_socket_directories= -c fsync=off"
        _run(
            [*command, str(programs / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-w", "-t", str(START_SECONDS),
             "-o", options, "start"], folder,
        )  # fmt: skip
        yield f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*command, *stopping], cwd=folder, capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = START_SECONDS) -> None:
    """Until something listens on the port; fails with the log where the process ends, or the time."""
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < seconds:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens on {port}: {log.read_text()[-3000:]}")


def _programs() -> Path:
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    if (found := shutil.which("initdb")) is not None:
        places.insert(0, Path(found).resolve().parent)
    if not (there := [place for place in places if (place / "initdb").is_file() and (place / "pg_ctl").is_file()]):
        pytest.skip(f"PostgreSQL is not installed. {INSTALL}")
    return there[0]


def _run(command: list[str], folder: Path) -> None:
    # No pipes: the server inherits them from pg_ctl, and whoever reads them would wait as long as it lives.
    with (folder / "output").open("wb") as output:
        done = subprocess.run(command, cwd=folder, stdout=output, stderr=output, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, (folder / "output").read_text()
