"""The surrogate ranks what was measured, its range covers what it promises, and what is unknown is averaged over."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.advising.landscape import (
    LOSS,
    Surrogate,
    check_runs,
    folds,
    held_out_errors,
    measured_loss,
    quantiles,
)
from dspy_toolkit.errors import DatasetError
from tests.advising.made import BEST, COLUMNS, runs


def everything(configuration: object) -> bool:
    return True


@pytest.mark.parametrize("kind", ["easy", "hard"])
def test_the_best_is_found_in_a_family_that_was_not_seen(kind: str) -> None:
    made = runs()
    unseen = made[made["kind"] == kind]["family"].iloc[0]
    surrogate = Surrogate(made[made["family"] != unseen], COLUMNS)
    ranked = surrogate.rank({"kind": kind}, everything)
    assert ranked[0].configuration == {"rate": BEST[kind], "way": "a"}
    assert [each.loss for each in ranked] == sorted(each.loss for each in ranked)


def test_only_measured_and_allowed_configurations_are_ranked() -> None:
    ranked = Surrogate(runs(), COLUMNS).rank({"kind": "easy"}, lambda row: row["way"] == "b")
    assert {(each.configuration["rate"], each.configuration["way"]) for each in ranked} == {
        (0.1, "b"),
        (0.01, "b"),
        (0.001, "b"),
    }
    assert Surrogate(runs(), COLUMNS).rank({"kind": "easy"}, lambda row: False) == []


def test_what_is_unknown_is_averaged_over() -> None:
    surrogate = Surrogate(runs(), COLUMNS)
    ranked = {(r.configuration["rate"], r.configuration["way"]): r.loss for r in surrogate.rank({}, everything)}
    easy, hard = (
        {(r.configuration["rate"], r.configuration["way"]): r.loss for r in surrogate.rank({"kind": kind}, everything)}
        for kind in ("easy", "hard")
    )
    for configuration, loss in ranked.items():
        assert loss == pytest.approx((easy[configuration] + hard[configuration]) / 2)


def test_the_standard_error_is_that_of_a_mean_over_seeds() -> None:
    error = Surrogate(runs(families=40, noise=0.3), COLUMNS).standard_error
    assert error == pytest.approx(0.3 / np.sqrt(3), rel=0.25)
    assert Surrogate(runs(seeds=1), COLUMNS).standard_error == 0.0


def test_families_are_never_on_both_sides() -> None:
    held = []
    for known, out in folds(runs(), COLUMNS):
        assert not set(known["family"]) & set(out["family"])
        held.extend(out["family"].unique())
    assert sorted(held) == sorted(set(runs()["family"]))


def test_ranges_cover_what_they_promise() -> None:
    errors = held_out_errors(runs(families=30, noise=0.2), COLUMNS, everything)
    low, high = quantiles(errors)
    assert 0.75 <= float(((errors >= low) & (errors <= high)).mean()) <= 0.9


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.5, 0.95))
def test_quantiles_are_ordered_and_of_the_errors(errors: list[float], cover: float) -> None:
    low, high = quantiles(errors, cover)
    assert low <= high
    assert {low, high} <= set(errors)


def test_measured_loss_is_the_mean_over_what_fits() -> None:
    made = runs()
    there = made[(made["kind"] == "easy") & (made["rate"] == 0.1) & (made["way"] == "a")]
    assert measured_loss(made, COLUMNS, {"kind": "easy"}, {"rate": 0.1, "way": "a"}) == pytest.approx(
        there[LOSS].mean()
    )


def test_runs_without_a_column_or_a_row_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"x\.parquet has no column rate"):
        check_runs(runs().drop(columns="rate"), COLUMNS, "x.parquet")
    with pytest.raises(DatasetError, match=r"x\.parquet has no runs"):
        check_runs(runs().head(0), COLUMNS, "x.parquet")
