"""A store, and an evaluation that needs no more than a program and its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dspy.adapters.chat_adapter import ChatAdapter

from dspy_toolkit.evaluation import Report, evaluate
from dspy_toolkit.metrics import exact_match
from dspy_toolkit.store import Store
from tests.evaluation.made import SPEC, ScriptedLM


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "objects"))


@pytest.fixture
def run(store: Store) -> Callable[..., Report]:
    def run(program: Any, frame: Any, metric: Any = exact_match, lm: Any = None, **options: Any) -> Report:
        adapter = ChatAdapter(use_json_adapter_fallback=False)
        lm = lm or ScriptedLM({})
        return evaluate(program, frame, SPEC, metric, split="val", lm=lm, adapter=adapter, store=store, **options)

    return run
