"""What stands behind a served name, and keeping it what the registry says is live.

A thread asks the registry every few seconds. Another champion is loaded beside the one that answers, tried on a kept example, and
then one reference moves: a request that has begun ends with the program that it began with. A version that cannot be loaded or
does not answer its example is refused, and said; the one before goes on. While the registry cannot be read, what was live is.

Covered: champions, versions by their number, what they fall back on, challengers. Not covered: the code of a project that
changed: it is read once a process.
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


@dataclass(frozen=True)
class Standing:
    """Everything behind a name at one moment."""

    live: Live
    fall_back: tuple[Live, ...] = ()
    """In the order of asking: the version before it, the same program on listed models."""
    challenger: Live | None = None


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


def stand(settings: Settings, reference: str, location: str, name: str) -> Standing:
    """Load what a name stands for, and what it falls back on. What cannot be loaded of the latter is left out, with a warning.

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
        challenger = load_live(settings, f"{live.name}@{asked.version}", location)
    return Standing(live, tuple(behind), challenger)


class Watcher:
    """The thread that follows the registry."""

    def __init__(
        self, settings: Settings, entries: Callable[[], list[Entry]], told: Callable[[str, str], None]
    ) -> None:
        """Args: entries: what is served; told: is called with a name and `swapped` or `refused`."""
        self._settings, self._entries, self._told = settings, entries, told
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serving registry", daemon=True)
        self.trouble: str | None = None
        """Why the registry cannot be read now; None where it can."""

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._settings.serving.poll_seconds):
            self.look()

    def look(self) -> None:
        """Ask the registry once. Never raises what the registry or a version does."""
        for entry in self._entries():
            if entry.follows:
                try:
                    self._follow(entry)
                except Exception as error:  # isolation boundary: the thread goes on whatever one look meets
                    self._note(error)

    def _follow(self, entry: Entry) -> None:
        from dspy_toolkit.registry import champion

        now = champion(self._settings, entry.standing.live.name).version
        if self.trouble is not None:
            log.warning("The registry can be read again.")
            self.trouble = None
        before = entry.standing.live.version
        if now == before or now is None:
            entry.refused = None
            return
        if entry.refused is not None and entry.refused[0] == now:
            return
        try:
            standing = stand(self._settings, f"{entry.standing.live.name}@{now}", entry.location, entry.name)
            smoke_test(standing.live)
        except ToolkitError as error:
            if isinstance(error, RegistryError) and error.retryable:
                raise
            entry.refused = now, str(error)
            log.error("%s@%d does not take over, %s goes on: %s", entry.name, now, entry.standing.live, error)
            self._told(entry.name, "refused")
            return
        entry.standing, entry.since, entry.refused = standing, time.time(), None
        log.warning("%s answers now, in place of version %s.", standing.live, before or "none")
        self._told(entry.name, "swapped")

    def _note(self, error: Exception) -> None:
        said = f"{type(error).__name__}: {error}"
        if self.trouble is None:
            log.warning("The registry cannot be read; what was live goes on: %s", said)
        self.trouble = said
