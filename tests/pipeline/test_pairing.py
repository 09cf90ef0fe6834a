"""Scores of several programs on the same rows, side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dspy_toolkit.errors import DatasetError, ObjectMissing
from dspy_toolkit.evaluation import Report
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.pipeline.pairing import paired, tokens_ratio
from dspy_toolkit.store import Ref, Store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


def report(store: Store, values, rows=None, prompt_tokens=1000) -> Report:
    rows = [f"row{i:04}" for i in range(len(values))] if rows is None else rows
    groups = [f"group of {row}" for row in rows]
    table = pd.DataFrame({"_row": rows, "_group": groups, "value": np.asarray(values, float)})
    return Report(
        split="sealed",
        mean=float(np.mean(values)),
        low=0,
        high=1,
        n=len(values),
        parse_retries=0,
        parse_failures=0,
        metric_errors=0,
        usage=Usage(
            lm_calls=len(values), physical_calls=len(values), prompt_tokens=prompt_tokens, completion_tokens=10
        ),
        seconds=1.0,
        rows=store.save_frame(table),
    )


def test_rows_are_paired_by_their_hash_and_not_by_their_place(store):
    values, order = np.linspace(0, 1, 40), np.random.default_rng(1).permutation(40)
    rows = np.array([f"row{i:04}" for i in range(40)])
    found = paired(store, report(store, values[order], rows[order]), report(store, values), report(store, values / 2))
    assert found.candidate.tolist() == found.others[0].tolist() == values.tolist()
    assert found.others[1].tolist() == (values / 2).tolist()
    assert found.groups == [f"group of {row}" for row in rows]


def test_reports_on_different_rows_are_refused(store):
    ours, theirs = report(store, [1, 0, 1]), report(store, [1, 0])
    with pytest.raises(
        DatasetError, match=r"3 of the candidate \(1 only there\) and 2 of the champion \(0 only there\)"
    ):
        paired(store, ours, theirs)
    twice = report(store, [1, 0], rows=["a", "a"])
    with pytest.raises(DatasetError, match="same rows"):
        paired(store, twice, twice)


def test_rows_that_are_gone_are_a_cache_miss(store):
    seen = report(store, [1, 0])
    gone = seen.model_copy(update={"rows": Ref(sha256="0" * 64, kind="parquet")})
    with pytest.raises(ObjectMissing):
        paired(store, gone, seen)


def test_prompt_tokens_that_were_not_counted_are_no_saving(store):
    ours, theirs = report(store, [1, 0]), report(store, [1, 0], prompt_tokens=0)
    assert tokens_ratio(ours, theirs) == 1
    assert tokens_ratio(ours, report(store, [1, 0], prompt_tokens=2000)) == 0.5
