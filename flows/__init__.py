"""One file a flow. Run one with `python -m flows.optimize_program`, through a deployment, or from Python.

Importing this package, before Prefect is imported, points Prefect at a profile of this home (`HOME/prefect`, a local
API), so that no row of data goes to somebody else's workspace by accident. PREFECT_API_URL, PREFECT_PROFILE or
PREFECT_HOME, where one is set, decide instead, and so does a prefect.toml in this folder, such as `make up` makes. This is the one place where an import has an effect: Prefect reads its
environment once.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from flows.temporary_server import MARK


def prepare_environment() -> None:
    """Set what the user has not set."""
    from dspy_toolkit.durable import make_home
    from dspy_toolkit.errors import StoreError
    from dspy_toolkit.settings import Settings

    wanted = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # On a busy machine with a new database the temporary server takes longer than Prefect's 20 s.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "dspy_toolkit",
        # The engine's thread belongs to no flow run; what it logs is not worth a warning of Prefect's.
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # Leases on disk: those of a server that was killed are known to the next one, and expire.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    named = any(name in os.environ for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_HOME"))
    if not named and not os.path.exists("prefect.toml"):  # which names a server, and its password
        home = os.environ.get("DSPY_TOOLKIT_HOME") or Settings.model_fields["home"].default
        wanted["PREFECT_HOME"] = os.path.join(os.path.abspath(os.path.expanduser(home)), "prefect")
        # Prefect makes only the last folder. Where this one cannot be made, the flow reports it when it starts.
        with suppress(OSError, StoreError):
            make_home(Path(wanted["PREFECT_HOME"]).parent)
            os.makedirs(wanted["PREFECT_HOME"], exist_ok=True)
        if not os.path.exists(os.path.join(wanted["PREFECT_HOME"], "profiles.toml")):
            # The temporary server would answer everybody on this machine, and every page in a browser on it. (A profile may
            # name another server, which has an auth string of its own.)
            ours, theirs = "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"
            said = os.environ.get(ours) or os.environ.get(theirs) or f"dspy-toolkit:{secrets.token_urlsafe(16)}"
            wanted[ours] = wanted[theirs] = said
    if "PREFECT__FLOW_RUN_ID" not in os.environ:
        # At a terminal there are progress bars and a table; the log goes to Prefect's own page.
        wanted["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    # Anew in each process: by it a temporary server is known as the one that this process started.
    os.environ[MARK] = secrets.token_hex(8)


prepare_environment()
