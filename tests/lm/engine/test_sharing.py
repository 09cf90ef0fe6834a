"""Prefixes that are held once on a GPU's ways: the same tokens, a fraction of the bytes, and only where it is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_toolkit.lm.engine import sharing
from dspy_toolkit.lm.engine.footprint import STEP
from tests.lm.engine.batches import Bench, Run, answer, finish, insert
from tests.lm.tiny import WINDOW, Kind

PREFIX, ROWS, REPLY = 200, 6, 8


@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_shared_prefixes_change_no_token_and_take_no_copies(
    run: Run, tiny: Callable[[Kind], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    bench = Bench(tiny(kind), tmp_path)
    beginning = list(range(2000, 2000 + PREFIX))
    asked = [[*beginning, *range(5000 + 10 * n, 5005 + 10 * n)] for n in range(ROWS)]

    def replies(pays_from: float) -> tuple[list[list[int]], int, Any]:
        monkeypatch.setattr(sharing, "pays_from", lambda *shape: pays_from)
        with bench.batch(gpu=True) as batch:
            answer(batch, [bench.sequence(asked[0], max_tokens=1), bench.sequence(asked[1], max_tokens=1)])
            rows = [bench.sequence(prompt, max_tokens=REPLY) for prompt in asked]
            insert(batch, rows)
            most = 0

            def look() -> None:
                nonlocal most
                most = max(most, batch.counts["cache_bytes"])

            finish(batch, look)
            assert all(row.reused >= PREFIX - 10 for row in rows)
            return [row.reply for row in rows], most, batch._footprint

    shared, few, footprint = run(lambda: replies(0))
    copied, many, _ = run(lambda: replies(math.inf))
    assert run(lambda: replies(PREFIX + 100))[0] == shared == copied, "below the rule's length: copies again"
    # Full layers hold a row's own few tokens; sliding ones a window each, which is no longer than the window.
    windows = sum(each * (WINDOW + STEP + PREFIX) for each, _ in footprint.windows)
    assert few <= ROWS * (footprint.growing * (5 + REPLY + 2 * STEP) + windows + footprint.fixed)
    assert many >= ROWS * footprint.growing * PREFIX
    assert few < many / 1.2 if kind == "sliding" else few < many / 2


def test_a_model_with_attention_of_its_own_keeps_copies(
    run: Run, tiny: Callable[[Kind], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not look at what its rows share says something else: noticed when it is loaded."""
    bench = Bench(tiny("llama"), tmp_path)
    monkeypatch.setattr(sharing, "pays_from", lambda *shape: 0.0)

    def work() -> tuple[float, float]:
        from mlx_lm.models import llama

        with bench.batch(gpu=True) as batch:
            right = batch._share_from
        blind: Any = llama.scaled_dot_product_attention

        def own(q: Any, k: Any, v: Any, cache: Any = None, **more: Any) -> Any:
            return blind(q, k, v, cache=None, **more)

        own.instead_of = blind  # type: ignore[attr-defined]
        monkeypatch.setattr(llama, "scaled_dot_product_attention", own)
        with bench.batch(gpu=True) as batch:
            return right, batch._share_from

    assert run(work) == (0.0, math.inf)
