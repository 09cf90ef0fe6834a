"""The registry's lists straight from MLflow's SQLite file, where it is of the schema that this was written for.

Importing MLflow and opening its store takes some three seconds, which a command that prints a few lines should not. Nothing is
written, and nothing is guessed: of a server, another database, another schema, or a file that cannot be read now, the answer is
None, and MLflow is asked, whose errors say what to do.

Covered: names of registered models, versions with their tags and aliases. Not covered: what they mean (`versions`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dspy_toolkit.tracking.mlflow_client import sqlite_file

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

SCHEMA = "dc11669786a5"
"""Of MLflow 3.17: Alembic's name of it."""
WAIT_SECONDS = 5.0
"""For somebody who writes."""
DELETED = "Deleted_Internal"
"""MLflow's stage of a version that was deleted, whose row stays."""
# In the one workspace of an MLflow that was not told to have several.
NAMES = (
    "SELECT name FROM registered_models WHERE workspace = 'default' AND name NOT IN "  # MLflow's prompts are no models
    "(SELECT name FROM registered_model_tags WHERE workspace = 'default' AND key = 'mlflow.prompt.is_prompt')"
)
VERSIONS = (
    "SELECT version, run_id, creation_time FROM model_versions "
    "WHERE workspace = 'default' AND name = ? AND current_stage != ?"
)
TAGS = "SELECT version, key, value FROM model_version_tags WHERE workspace = 'default' AND name = ?"
ALIASES = "SELECT alias, version FROM registered_model_aliases WHERE workspace = 'default' AND name = ?"


@dataclass(frozen=True)
class SavedVersion:
    """A version as MLflow keeps it; named as in its `ModelVersion`."""

    name: str
    version: int
    run_id: str | None
    creation_timestamp: int
    """Milliseconds since 1970."""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedModel:
    """A registered model: its versions, and alias → version."""

    versions: list[SavedVersion]
    aliases: dict[str, int]


def saved_names(settings: Settings) -> list[str] | None:
    """The names of all registered models; None where MLflow must be asked."""
    with _database(settings) as database:
        if database is None:
            return None
        try:
            return [name for (name,) in database.execute(NAMES)]
        except sqlite3.Error:
            return None


def saved_model(settings: Settings, name: str) -> SavedModel | None:
    """A registered model with all its versions; None where MLflow must be asked, also where there is no such model."""
    with _database(settings) as database:
        if database is None:
            return None
        try:
            if (name,) not in database.execute(NAMES).fetchall():
                return None
            found = {
                number: SavedVersion(name, number, run_id, created)
                for number, run_id, created in database.execute(VERSIONS, (name, DELETED))
            }
            for number, key, value in database.execute(TAGS, (name,)):
                if number in found:
                    found[number].tags[key] = value
            return SavedModel(list(found.values()), dict(database.execute(ALIASES, (name,)).fetchall()))
        except sqlite3.Error:
            return None


@contextmanager
def _database(settings: Settings) -> Iterator[sqlite3.Connection | None]:
    """The file, for reading, all of it as of one moment."""
    file = sqlite_file(settings.tracking_uri)
    if file is None or os.environ.get("MLFLOW_WORKSPACE"):
        yield None
        return
    try:
        opened = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=WAIT_SECONDS)
    except sqlite3.Error:
        yield None
        return
    with closing(opened):
        try:
            opened.execute("BEGIN")
            known = opened.execute("SELECT version_num FROM alembic_version").fetchall() == [(SCHEMA,)]
        except sqlite3.Error:
            known = False
        yield opened if known else None
