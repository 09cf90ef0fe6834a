"""Where each service answers, and what it finds in its environment. Everything is on loopback.

Not covered: starting anything (`deployments.services`).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dspy_toolkit.durable import write_file
from dspy_toolkit.errors import SettingsError
from dspy_toolkit.settings import Settings

HOST = "127.0.0.1"
POOL = "mlx"
MARK = "TOOLKIT_SERVICES"
"""The environment variable by which a process is known as one that `make up` started; its value is the home."""
CLIENT_FILE = "prefect.toml"
"""Read by Prefect's commands in the clone, so that they find the server and its password from any shell."""
FIRST_LINE = "# Made by `make up`, removed by `make down`.\n"
HEARTBEAT_SECONDS = 60
"""How often a run says that it lives; Prefect's own is 180 s."""


@dataclass(frozen=True)
class Ports:
    """One for each service that answers."""

    server: int = 4200
    mlflow: int = 5000
    serving: int = 8000
    pages: int = 8090


@dataclass(frozen=True)
class Places:
    """A clone, a home and ports."""

    clone: Path
    settings: Settings
    ports: Ports

    @property
    def folder(self) -> Path:
        """Process files and logs."""
        return self.settings.path("services")

    @property
    def api(self) -> str:
        """Prefect's API."""
        return f"http://{HOST}:{self.ports.server}/api"

    @property
    def server(self) -> str:
        """Prefect's pages."""
        return f"http://{HOST}:{self.ports.server}"

    @property
    def mlflow(self) -> str:
        """MLflow's pages; the server that the settings name, where they name one."""
        served = self.settings.tracking_uri
        return served if served.startswith("http") else f"http://{HOST}:{self.ports.mlflow}"

    @property
    def pages(self) -> str:
        """Our own pages."""
        return f"http://{HOST}:{self.ports.pages}"

    @property
    def serving(self) -> str:
        """Where programs answer."""
        return f"http://{HOST}:{self.ports.serving}"

    @property
    def worker(self) -> str:
        """The name of this machine's worker."""
        return f"{socket.gethostname()}-mlx"

    @cached_property
    def password(self) -> str:
        """Prefect's auth string, drawn once for a home, unless the environment gives one."""
        for name in ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
            if said := os.environ.get(name):
                return said
        return f"dspy-toolkit:{self._secret('password')}"

    @cached_property
    def alerts_token(self) -> str:
        """What an alert must bring along, drawn once for a home."""
        return self._secret("alerts")

    def _secret(self, name: str) -> str:
        path = self.folder / f"{name}.secret"
        if not path.exists():
            write_file(path, secrets.token_hex(16).encode())
            path.chmod(0o600)
        return path.read_text(encoding="ascii").strip()

    @property
    def environment(self) -> dict[str, str]:
        """What every service is started with, beside the environment of `make up` itself."""
        return {
            MARK: str(self.settings.path()),
            "DSPY_TOOLKIT_HOME": str(self.settings.path()),
            "PREFECT_HOME": str(self.settings.path("prefect")),
            "PREFECT_API_URL": self.api,
            "PREFECT_API_AUTH_STRING": self.password,
            "PREFECT_SERVER_API_AUTH_STRING": self.password,
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_SERVER_API_PORT": str(self.ports.server),
            "PREFECT_UI_URL": self.server,
            # Prefect's default lets every page of a browser on this machine talk to the server.
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.server,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # three more processes, for evaluations that nobody starts there
            # Else MLflow, which imports it, has it ask another host for prices.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            # Leases on disk: those of a server that was killed are known to the next one, and expire.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            # A run that waits for another of its deployment asks again after so long; Prefect's default is 30 s.
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
            # A deployment whose schedules were taken out of its file has none any more.
            "PREFECT_DEPLOYMENTS_CLEAR_SCHEDULES_ON_EMPTY": "true",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            # What a server answers whose database is away; else a run ends by it that a minute of patience would save.
            "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "dspy_toolkit",
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        }

    def write_client_file(self) -> None:
        """Let Prefect's commands in this clone find the server, from any shell. Only its owner may read it.

        Raises:
            SettingsError: somebody's own prefect.toml is there.
        """
        path = self.clone / CLIENT_FILE
        self.check_client_file()
        text = FIRST_LINE + "".join(
            f"{name} = {json.dumps(value)}\n"
            for name, value in {
                "home": self.environment["PREFECT_HOME"],
                "api.url": self.api,
                "api.auth_string": self.password,
                "server.analytics_enabled": False,
                "flows.heartbeat_frequency": HEARTBEAT_SECONDS,
            }.items()
        )
        write_file(path, text.encode())
        path.chmod(0o600)

    def check_client_file(self) -> None:
        """Raise SettingsError where a prefect.toml is there that `make up` has not made."""
        path = self.clone / CLIENT_FILE
        if path.exists() and not path.read_text(encoding="utf-8").startswith(FIRST_LINE):
            raise SettingsError(
                f"{path} is there already, and `make up` has not made it. Move it away: its place is needed."
            )

    def remove_client_file(self) -> None:
        """Take away what `write_client_file` made, and nothing else."""
        path = self.clone / CLIENT_FILE
        if path.exists() and path.read_text(encoding="utf-8").startswith(FIRST_LINE):
            path.unlink()
