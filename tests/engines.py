"""Engines of a test's own, in a process whose other tests share one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def own_engines() -> Iterator[None]:
    """Inside no model is connected yet; what is connected there is closed at the end, and the session's engine is not."""
    from dspy_toolkit.lm import close_engines, connection
    from dspy_toolkit.lm.litellm import provider

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "_chains", {})
        patch.setattr(provider, "_chains", {})
        try:
            yield
        finally:
            close_engines()
