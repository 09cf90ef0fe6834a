"""Lets the tests of this folder import what they share, and the optimizers' toy task."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.made import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A store, and runs made by hand in it."""
    return Desk(tmp_path)
