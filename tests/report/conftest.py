"""Lets the tests of this folder import what they share, and the optimizers' toy task."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "optimizers"))

from made import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A store, and runs made by hand in it."""
    return Desk(tmp_path)
