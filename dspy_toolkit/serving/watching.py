"""What stands behind a served name, and keeping it what the registry says is live.

A thread asks the registry every few seconds. Another champion is loaded beside the one that answers, tried on a kept
example, and then one reference moves: a request that has begun ends with the program that it began with. A version that
cannot be loaded or does not answer its example is refused, and said; the one before goes on. Where the model cannot be
asked now, or the time for a request is over, the version is tried again; one that ran out of time thrice is refused. While
the registry cannot be read, or its database is not there any more, what was live is.

Covered: champions, versions by their number, what they fall back on, challengers. Not covered: the code of a project that
changed: it is read once a process; a challenger that could not be loaded, which the next swap or start looks for again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dspy_toolkit.errors import RegistryError, ToolkitError
from dspy_toolkit.serving.programs import Live, load_live, smoke_test

if TYPE_CHECKING:
    from dspy_toolkit.settings import Settings

log = logging.getLogger(__name__)

TRIAL_SHARE = 0.2
"""Of the thread's time, for a version that is tried again and again: other names are followed in the same thread."""
LATE_TRIALS = 3
"""That ran out of time, after which a version is refused: where its own code hangs, each leaves a thread behind."""
STOP_SECONDS = 5.0
"""For a look that is under way when the server stops; a registry that hangs is not waited for."""


@dataclass(frozen=True)
class Standing:
    """Everything behind a name at one moment."""

    live: Live
    fall_back: tuple[Live, ...] = ()
    """In the order of asking: the version before it, the same program on listed models."""
    challenger: Live | None = None


@dataclass(frozen=True)
class Postponed:
    """A champion that could not be tried yet."""

    version: int
    until: float
    """When it is tried again, of `time.monotonic`."""
    late: int
    """Trials that ran out of time."""


@dataclass
class Entry:
    """A served name."""

    name: str
    reference: str
    """How it was asked for: a project, or `router@3`."""
    location: str
    follows: bool
    """Whether it is whatever the champion is."""
    standing: Standing
    """One reference, read once a request."""
    since: float = field(default_factory=time.time)
    refused: tuple[int, str] | None = None
    """A champion that could not take over: its version, and why."""
    postponed: Postponed | None = None


def stand(settings: Settings, reference: str, location: str, name: str) -> Standing:
    """Load what a name stands for, what it falls back on and its challenger. What cannot be loaded of the latter two is
    left out, with a warning.

    Raises:
        ToolkitError: the program itself cannot be loaded.
    """
    from dspy_toolkit.registry import find_version

    live = load_live(settings, reference, location)
    behind: list[Live] = []
    for option in settings.serving.fall_back_on:
        try:
            if option != "previous":
                behind.append(load_live(settings, reference, location, model=option))
            elif live.version is not None:
                before = find_version(settings, f"{live.name}@{live.version}").previous
                if before is not None:
                    behind.append(load_live(settings, f"{live.name}@{before}", location))
        except ToolkitError as error:
            log.warning("%s has nothing to fall back on in %s: %s", live, option, error)
    challenger = None
    if (asked := settings.serving.challengers.get(name)) is not None and asked.version != live.version:
        try:
            challenger = load_live(settings, f"{live.name}@{asked.version}", location)
        except ToolkitError as error:
            log.warning("%s has no challenger: %s", live, error)
    return Standing(live, tuple(behind), challenger)


class Watcher:
    """The thread that follows the registry."""

    def __init__(
        self, settings: Settings, entries: Callable[[], list[Entry]], told: Callable[[str, str], None]
    ) -> None:
        """Args: entries: what is served; told: is called with a name and `swapped`, `refused` or `postponed`."""
        self._settings, self._entries, self._told = settings, entries, told
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serving registry", daemon=True)
        self.trouble: str | None = None
        """Why the registry cannot be read now; None where it can."""

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop. A version that is being tried is given up, and a look that is under way has a few seconds to end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(self._settings.serving.poll_seconds):
            self.look()

    def look(self) -> None:
        """Ask the registry once. Never raises what the registry or a version does."""
        trouble: Exception | None = None
        for entry in self._entries():
            if entry.follows:
                try:
                    self._follow(entry)
                except Exception as error:  # isolation boundary: the thread goes on whatever one look meets
                    trouble = error
        self._note(trouble)

    def _follow(self, entry: Entry) -> None:
        from dspy_toolkit.registry import champion
        from dspy_toolkit.tracking.mlflow_client import exists

        now = champion(self._settings, entry.standing.live.name).version
        before = entry.standing.live.version
        if now is None and before is not None and not exists(self._settings):
            raise RegistryError(f"There is no database at {self._settings.tracking_uri} any more. Put it back.")
        if now == before or now is None:
            entry.refused = entry.postponed = None
            return
        if entry.refused is not None and entry.refused[0] == now:
            return
        postponed = entry.postponed
        if postponed is not None and postponed.version == now and time.monotonic() < postponed.until:
            return
        began = time.monotonic()
        try:
            standing = stand(self._settings, f"{entry.standing.live.name}@{now}", entry.location, entry.name)
            smoke_test(standing.live, self._settings.serving.deadline_seconds, self._stop)
        except ToolkitError as error:
            if self._stop.is_set():
                return
            if isinstance(error, RegistryError) and error.retryable:
                raise
            if error.retryable:
                self._postpone(entry, now, began, error)
            else:
                self._refuse(entry, now, error)
            return
        entry.standing, entry.since, entry.refused, entry.postponed = standing, time.time(), None, None
        log.warning("%s answers now, in place of version %s.", standing.live, before or "none")
        self._told(entry.name, "swapped")

    def _refuse(self, entry: Entry, version: int, error: Exception) -> None:
        entry.refused, entry.postponed = (version, str(error)), None
        log.error("%s@%d does not take over, %s goes on: %s", entry.name, version, entry.standing.live, error)
        self._told(entry.name, "refused")

    def _postpone(self, entry: Entry, version: int, began: float, error: Exception) -> None:
        """Have a version tried again: at the next look, or later where this trial, from `began` on, took long."""
        before = entry.postponed if entry.postponed is not None and entry.postponed.version == version else None
        now = time.monotonic()
        late = (before.late if before is not None else 0) + (now - began >= self._settings.serving.deadline_seconds)
        if late >= LATE_TRIALS:
            self._refuse(entry, version, error)
            return
        entry.postponed = Postponed(version, now + (now - began) * (1 / TRIAL_SHARE - 1), late)
        said = "%s@%d cannot be tried now and is tried again, %s goes on: %s"
        log.log(logging.INFO if before else logging.WARNING, said, entry.name, version, entry.standing.live, error)
        self._told(entry.name, "postponed")

    def _note(self, trouble: Exception | None) -> None:
        """Say of a look that it met trouble, where the one before did not, and the other way round."""
        if trouble is None:
            if self.trouble is not None:
                log.warning("The registry can be read again.")
            self.trouble = None
            return
        said = f"{type(trouble).__name__}: {trouble}"
        if self.trouble is None:
            log.warning("The registry cannot be read; what was live goes on: %s", said)
        self.trouble = said
