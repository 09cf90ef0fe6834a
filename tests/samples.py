"""Cases of which the ordinary suite runs some, and the soak all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sample(cases: Iterable[Any], *ordinary: Any) -> list[Any]:
    """Parameters of a test: `ordinary` ones as they are, all others marked for the soak."""
    cases = list(cases)
    assert set(ordinary) <= set(cases), "The ordinary suite would run none of these."
    return [case if case in ordinary else pytest.param(case, marks=pytest.mark.soak) for case in cases]
