"""Turns over all homes of an MLflow server: whoever moves a champion, or takes a version out of the history, has the turn.

MLflow has no compare-and-set, but it makes a registered model of a name only once. So the turn is a registered model of the
server, `router (promoting)`, with a tag that says whose it is; it is there for as long as a promotion takes, and is no project:
no project can have such a name. The home's own lock is held around it, so that the processes of a home ask one after the other.

A process that was killed leaves its turn behind. The next one of its home takes it away at once, another home when it has seen
the same turn for a minute.

Not covered, because nothing of MLflow can rule it out: a process that stands still for more than that minute between its last
look and its write, and whoever moves the alias without a turn, as MLflow's own pages and toolkits before this one do. A promotion
looks right before and right after it moves the alias, and says what it finds.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dspy_toolkit.durable import writing
from dspy_toolkit.errors import RegistryError
from dspy_toolkit.registry.lock import registry_lock
from dspy_toolkit.tracking.mlflow_client import is_code, session

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)

SUFFIX = " (promoting)"
TURN = "turn"
"""Tag of the registered model: whose turn it is."""
LEFT_SECONDS = 60.0
"""After so long with the same turn its process is gone: a promotion takes a second or two."""
BETWEEN_TRIES = 0.1
"""Seconds."""


@contextmanager
def promotion_turn(
    settings: Settings, project: str, seconds: float = LEFT_SECONDS
) -> Iterator[Callable[[MlflowClient], bool]]:
    """Have the turn to change what is live of a project that exists.

    Args:
        seconds: after which a turn that does not end is taken to be left by a process that was killed.

    Yields:
        Tells whether the turn is still this caller's.

    Raises:
        RegistryError: others had it all the time (retryable), or the registry or the home cannot be written.
    """
    mine, name, file = uuid.uuid4().hex, f"{project}{SUFFIX}", settings.path("registry.lock")
    with registry_lock(settings):
        with writing(file, RegistryError):
            left = file.read_text(encoding="utf-8")  # by the home's last promotion
            file.write_text(mine, encoding="utf-8")
        with session(settings, f"The turn to change what is live of {project} could not be had") as mlflow:
            _take(mlflow, name, mine, left, seconds)
        try:
            yield lambda mlflow: _whose(mlflow, name) == mine
        finally:
            _end(settings, name, mine)


def _take(mlflow: MlflowClient, name: str, mine: str, left: str, seconds: float) -> None:
    seen, since = None, time.monotonic()
    until = since + 3 * seconds
    while not _made(mlflow, name, mine):
        whose, now = _whose(mlflow, name), time.monotonic()
        if whose == mine:  # it was made, and the answer that said so was lost
            return
        if whose != seen:
            seen, since = whose, now
        if whose is not None and (whose == left or now - since >= seconds):
            log.warning("The turn %r was left by a process that was killed. It is taken away.", name)
            _remove(mlflow, name)
        elif now >= until:
            busy = RegistryError(
                f"Other homes have had the turn {name!r} for {3 * seconds:g} s. Wait until they end, then run again."
            )
            busy.retryable = True
            raise busy
        else:
            time.sleep(BETWEEN_TRIES)


def _made(mlflow: MlflowClient, name: str, mine: str) -> bool:
    from mlflow.exceptions import MlflowException

    about = (
        "A home of dspy-toolkit is moving a champion. Where a killed process left this, the next promotion removes it."
    )
    try:
        mlflow.create_registered_model(name, tags={TURN: mine}, description=about)
    except MlflowException as error:
        # The second: it ended while MLflow looked what was in the way.
        if is_code(error, "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            return False
        raise
    return True


def _whose(mlflow: MlflowClient, name: str) -> str | None:
    """Whose turn it is; None where it is nobody's."""
    from mlflow.exceptions import MlflowException

    try:
        return str(mlflow.get_registered_model(name).tags.get(TURN))
    except MlflowException as error:
        if is_code(error, "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise


def _remove(mlflow: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        mlflow.delete_registered_model(name)
    except MlflowException as error:  # somebody else has just removed it
        if not is_code(error, "RESOURCE_DOES_NOT_EXIST"):
            raise


def _end(settings: Settings, name: str, mine: str) -> None:
    try:
        with session(settings, f"The turn {name!r} could not be given back") as mlflow:
            if _whose(mlflow, name) == mine:
                _remove(mlflow, name)
    except RegistryError as error:  # what was done in the turn is done
        log.warning("%s Other homes take it away after %g s.", error, LEFT_SECONDS)
