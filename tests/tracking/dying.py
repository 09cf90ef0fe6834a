"""What the operating system does when a process ends: it gives its locks back."""

from __future__ import annotations

from dspy_toolkit.settings import Settings
from dspy_toolkit.tracking import processes


def die(settings: Settings) -> None:
    """From now on this process is another one; the runs that it has open belong to one that is gone."""
    processes._own.pop(settings.path("processes")).release()
