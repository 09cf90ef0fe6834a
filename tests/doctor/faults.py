"""A home with one fault of each kind that the doctor mends."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dspy_toolkit.lm.models import lease
from dspy_toolkit.settings import Settings

LEFT = "x.json." + "0" * 32 + ".partial"
"""The name of a file that a killed writer left."""


def break_home(home: Settings, locks: Path, patch: pytest.MonkeyPatch) -> None:
    """Make the faults, and things that look like faults and are none.

    Args:
        home: broken.
        locks: a new folder, where the accelerator's lock is until `patch` is undone.
        patch: of the test.
    """
    folder = home.path()
    folder.chmod(0o755)
    for shard, text in (("000", "no database at all, for a long way " * 40), ("001", "")):
        (folder / "cache" / shard).mkdir(parents=True)
        (folder / "cache" / shard / "cache.db").write_text(text)
    for place, age in ((folder / "splits", 7200), (folder / "reports", 60), (folder / "prefect", 7200)):
        place.mkdir()
        (place / LEFT).write_text("half")
        then = time.time() - age
        os.utime(place / LEFT, (then, then))
    (folder / "splits" / "mine.partial").write_text("not the toolkit's")
    locks.mkdir()
    (locks / "cpu").write_text("a file where a folder should be")
    patch.setattr(lease, "lease_path", lambda device: locks / "cpu")
