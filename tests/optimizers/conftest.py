"""Lets the tests of this folder import what they have in common (`toys`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.optimizers.toys import Toy


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """A small classification task, in a home of its own."""
    return Toy(tmp_path)
