"""Reaching MLflow: a client for the settings in force, quiet, and with errors that a person can act on.

Covered: opening the store that `settings.tracking_uri` names (a local SQLite file is made when it is missing), the
experiment that runs are written to, translating MLflow's errors. Telemetry, messages and progress bars are off unless
the environment says otherwise. Nothing here uses MLflow's process-wide address or its "active run", so any thread may
call it.

Not covered: what is written (`dspy_toolkit.tracking.runs`, `dspy_toolkit.registry`); repeating a call that failed.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from dspy_toolkit.durable import make_home, put_in_place
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
    # With MLflow's default of seven a mistyped address takes four minutes to fail.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
_LOADING = threading.Lock()
OPEN_SECONDS = 120.0
"""Creating a database takes about five seconds, thirty on a busy machine."""
_opened: set[Path] = set()


def connect(settings: Settings) -> MlflowClient:
    """An MLflow client for `settings.tracking_uri`; a local SQLite file, and its folder, is made when it is not there.

    Raises:
        RegistryError: the address is not one that MLflow knows, the file is something else than a database, its folder
            cannot be written, its schema is another MLflow's, or a server does not answer.
    """
    uri = settings.tracking_uri
    if file := sqlite_file(uri):
        if file.parent == settings.path():
            make_home(file.parent, RegistryError)
        _check_database(file)
    _load()
    from mlflow import MlflowClient

    with mlflow_errors(f"Cannot open the MLflow store {uri}"), _alone(file):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _alone(file: Path | None) -> Iterator[None]:
    """Let one process at a time open a database file for the first time.

    MLflow creates the tables of a new one in a hundred migrations. Two processes at once break each other's, and one that is
    interrupted cannot be continued: a new database is made beside its place, and moved there when it is whole.
    """
    if file is None or file in _opened:
        yield
        return
    with held(Path(f"{file}.lock"), OPEN_SECONDS, RegistryError):
        if not file.exists():
            from mlflow import MlflowClient

            partial = Path(f"{file}.partial")
            for left in file.parent.glob(f"{partial.name}*"):  # by a process that was killed, with its journal
                left.unlink()
            MlflowClient(tracking_uri=f"sqlite:///{partial}", registry_uri=f"sqlite:///{partial}")
            put_in_place(partial, file, RegistryError)
        yield
    _opened.add(file)


@contextmanager
def session(settings: Settings, doing: str) -> Iterator[MlflowClient]:
    """`connect`, with `mlflow_errors(doing)` around what is done with the client."""
    mlflow = connect(settings)
    with mlflow_errors(doing):
        yield mlflow


def exists(settings: Settings) -> bool:
    """Whether anything can have been recorded: False means a local database that is not there. Writes nothing."""
    file = sqlite_file(settings.tracking_uri)
    return file is None or file.exists()


def experiment_id(mlflow: MlflowClient, settings: Settings) -> str:
    """The id of the experiment that `settings` name; made when it is missing, with its files in `HOME/artifacts`.

    An MLflow server keeps the files where it was told to. Call it inside `mlflow_errors`.

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
    """Turn an error of MLflow, its database, its server or the disk into a RegistryError of one line, `doing` first.

    It is retryable when the database was locked or the server did not answer.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # the last of a database's driver
        # SQLAlchemy adds the SQL with its values to the database's message: nothing that a person can act on.
        cause = next((found for each in causes(error) if (found := getattr(each, "orig", None))), error)
        reason = str(cause).strip().split("\n", 1)[0].rstrip(".")
        refused = RegistryError(f"{doing}: {reason}. Check registry.tracking_uri, the free space and the permissions.")
        refused.retryable = "is locked" in reason or "Max retries exceeded" in reason
        raise refused from error


def all_pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """What one of the client's searches finds, page after page."""
    token = None
    while True:
        page = search(*arguments, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


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
    # MLflow logs each database error with a traceback, then raises it: the RegistryError is enough.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def sqlite_file(uri: str) -> Path | None:
    """The database file that MLflow's address names; None where it names something else."""
    if not uri.startswith("sqlite:///"):
        return None
    name = unquote(uri.removeprefix("sqlite:///").split("?", 1)[0])  # as SQLAlchemy reads it
    return Path(name) if name and name != ":memory:" else None


def _check_database(file: Path) -> None:
    """Refuse at once a file that MLflow would try ten times over 100 seconds, with a warning each time."""
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
