"""A thread on which tests step a batch themselves, without an engine around it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lm.engine.batches import Run


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs something on a thread of its own: MLX's streams must not outlive their thread."""
    import mlx.core as mx

    with ThreadPoolExecutor(1) as pool:
        yield lambda work: pool.submit(work).result()
        pool.submit(mx.clear_streams).result()
