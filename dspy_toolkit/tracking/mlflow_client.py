"""Reaching MLflow: a client for the settings in force, quiet, and with errors that a person can act on.

Covered: opening the store that `settings.tracking_uri` names (a local SQLite file is made when it is missing), the
experiment that runs are written to, translating what MLflow raises. Telemetry, chatter and progress bars are off unless
the environment says otherwise. Nothing here uses MLflow's process-wide address or its "active run", so any thread may
call it.

Not covered: what is written (`dspy_toolkit.tracking.runs`, `dspy_toolkit.registry`); repeating a call that failed.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from dspy_toolkit.durable import make_home
from dspy_toolkit.errors import RegistryError, causes
from dspy_toolkit.locks import held

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from dspy_toolkit.settings import Settings

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's own seven would keep a person waiting for four minutes on a mistyped address.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
_LOADING = threading.Lock()
OPEN_SECONDS = 120.0
"""Making a database takes some five seconds, on a busy machine thirty."""
_opened: set[Path] = set()


def connect(settings: Settings) -> MlflowClient:
    """An MLflow client for `settings.tracking_uri`; a local SQLite file, and its folder, is made when it is not there.

    Raises:
        RegistryError: the address is not one that MLflow knows, the file is something else than a database, its folder
            cannot be written, its schema is another MLflow's, or a server does not answer.
    """
    uri = settings.tracking_uri
    if file := _sqlite_file(uri):
        if file.parent == settings.path():
            make_home(file.parent, RegistryError)
        _check_database(file)
    _load()
    from mlflow import MlflowClient

    with mlflow_errors(f"Cannot open the MLflow store {uri}"), _alone(file):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _alone(file: Path | None) -> Iterator[None]:
    """Open a database file that this process has not opened before one process at a time.

    MLflow makes the tables of a new one in a hundred steps, and two processes at it break each other's.
    """
    if file is None or file in _opened:
        yield
        return
    with held(Path(f"{file}.lock"), OPEN_SECONDS, RegistryError):
        yield
    _opened.add(file)


@contextmanager
def session(settings: Settings, doing: str) -> Iterator[MlflowClient]:
    """`connect`, with `mlflow_errors(doing)` around what is done with the client."""
    mlflow = connect(settings)
    with mlflow_errors(doing):
        yield mlflow


def exists(settings: Settings) -> bool:
    """Whether anything can have been recorded: False means a local database that is not there. Makes nothing."""
    file = _sqlite_file(settings.tracking_uri)
    return file is None or file.exists()


def experiment_id(mlflow: MlflowClient, settings: Settings) -> str:
    """The id of the experiment that `settings` name; made when it is missing, with its files in `HOME/artifacts`.

    An MLflow server keeps the files where it was told to. Call it within `mlflow_errors`.

    Raises:
        RegistryError: somebody deleted the experiment.
    """
    from mlflow.exceptions import MlflowException

    name = settings.registry.experiment
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        served = urlsplit(settings.tracking_uri).scheme in ("http", "https", "databricks")
        # Without a server MLflow's default would be `mlruns` in whatever folder the command was started in.
        location = None if served else settings.path("artifacts").as_uri()
        try:
            return mlflow.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if not is_code(error, "RESOURCE_ALREADY_EXISTS"):
                raise
            experiment = mlflow.get_experiment_by_name(name)  # another process made it in between
    if experiment is None or experiment.lifecycle_stage == "deleted":
        number = experiment.experiment_id if experiment else "ID"
        raise RegistryError(
            f"The MLflow experiment {name!r} was deleted. Run `mlflow experiments restore -x {number}`, "
            "or set registry.experiment to another name."
        )
    return experiment.experiment_id


@contextmanager
def mlflow_errors(doing: str) -> Iterator[None]:
    """Turn what MLflow, its database, its server or the disk raises into one RegistryError line, `doing` first.

    It is retryable when the database was locked or the server did not answer.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # the last of a database's driver
        # Around a database's own words stands the SQL with its values: nothing that a person can act on.
        cause = next((found for each in causes(error) if (found := getattr(each, "orig", None))), error)
        reason = str(cause).strip().split("\n", 1)[0].rstrip(".")
        refused = RegistryError(f"{doing}: {reason}. Check registry.tracking_uri, the free space and the permissions.")
        refused.retryable = "is locked" in reason or "Max retries exceeded" in reason
        raise refused from error


def is_code(error: BaseException, *codes: str) -> bool:
    """Whether an MlflowException has one of MLflow's error codes, such as `RESOURCE_DOES_NOT_EXIST`."""
    return getattr(error, "error_code", None) in codes


@cache
def _load() -> None:
    """Import MLflow quietly, once a process (about 5 s)."""
    with _LOADING, warnings.catch_warnings():
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # SQLAlchemy 2.1 deprecates a loader that MLflow's tables use; nothing here can act on it.
        warnings.simplefilter("ignore", DeprecationWarning)
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # pyright: ignore[reportUnusedImport]
    # It logs each database error with a traceback and then raises it: the RegistryError says it once.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith("sqlite:///"):
        return None
    name = unquote(uri.removeprefix("sqlite:///").split("?", 1)[0])  # as SQLAlchemy reads it
    return Path(name) if name and name != ":memory:" else None


def _check_database(file: Path) -> None:
    """Refuse at once what MLflow would try ten times over 100 seconds, with a warning each time."""
    advice = "Set DSPY_TOOLKIT_HOME or registry.tracking_uri to a place that can be written."
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        head = b""
        if file.exists():
            with file.open("rb") as opened:
                head = opened.read(16)
    except OSError as error:
        raise RegistryError(f"Cannot keep an MLflow database at {file}: {error}. {advice}") from error
    if head and head != b"SQLite format 3\0":
        raise RegistryError(f"{file} is not an SQLite database. Move it away, or set registry.tracking_uri.")
    if not file.exists() and not os.access(file.parent, os.W_OK):
        raise RegistryError(f"Cannot make the MLflow database {file}: its folder cannot be written. {advice}")
