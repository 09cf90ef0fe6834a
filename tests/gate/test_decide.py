"""Comparing two programs, the gate, and the chance that it promotes what is not better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.errors import DatasetError, ObjectMissing
from dspy_toolkit.evaluation import Report
from dspy_toolkit.gate import decide
from dspy_toolkit.gate.intervals import DIFFERENCES, bootstrap, tango
from dspy_toolkit.gate.ledger import Ledger
from dspy_toolkit.lm.usage import Usage
from dspy_toolkit.pipeline.compare import compare_reports as compare
from dspy_toolkit.run import SealedTest
from dspy_toolkit.store import Ref, Store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


def report(store: Store, values, groups=None, rows=None, prompt_tokens=1000) -> Report:
    rows = [f"row{i:04}" for i in range(len(values))] if rows is None else rows
    table = pd.DataFrame(
        {"_row": rows, "_group": rows if groups is None else groups, "value": np.asarray(values, float)}
    )
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


def compared(store, ours, theirs, *, alpha=0.0125, looks=1, left=0.75, tokens=1000, **options) -> SealedTest:
    candidate = report(store, ours, prompt_tokens=tokens, **options)
    return compare(candidate, report(store, theirs, **options), store, alpha=alpha, looks=looks, alpha_left=left)


def paired(wins: int, losses: int, n: int) -> tuple[list[int], list[int]]:
    same = n - wins - losses
    return [1] * wins + [0] * losses + [1] * same, [0] * wins + [1] * losses + [1] * same


def test_right_and_wrong_answers_are_compared_by_tango(store):
    seen = compared(store, *paired(30, 10, 240))
    assert seen.test == "tango"
    assert seen.delta == pytest.approx(20 / 240)
    assert (seen.low, seen.high) == tuple(map(float, tango(30, 10, 240, 0.0125)))
    assert (seen.level, seen.looks, seen.alpha_left) == (0.975, 1, 0.75)
    assert 0.04 < seen.detectable_effect < 0.12


def test_graded_scores_are_compared_by_the_bootstrap(store):
    random = np.random.default_rng(0)
    theirs = random.uniform(0, 0.8, 100)
    seen = compared(store, theirs + random.uniform(0, 0.2, 100), theirs)
    assert seen.test == "bootstrap"
    assert 0 < seen.low < seen.delta < seen.high < 0.2


def test_rows_that_share_groups_are_compared_by_the_bootstrap(store):
    ours, theirs = paired(30, 10, 240)
    seen = compared(store, ours, theirs, groups=[f"group{i // 2}" for i in range(240)])
    assert seen.test == "bootstrap"
    assert seen.low < float(tango(30, 10, 240, 0.0125)[0]), "neighbours that win together say less"


def test_rows_are_paired_by_their_hash_and_not_by_their_place(store):
    ours, theirs = paired(12, 3, 40)
    rows = np.array([f"row{i:04}" for i in range(40)])
    order = np.random.default_rng(1).permutation(40)
    straight = compared(store, ours, theirs)
    candidate = report(store, np.array(ours)[order], rows=rows[order])
    shuffled = compare(candidate, straight.champion, store, alpha=0.0125, looks=1, alpha_left=0.75)
    assert (shuffled.low, shuffled.high) == (straight.low, straight.high)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0, 0.25, 1])] * 2, st.integers(0, 20)), min_size=1, max_size=30))
def test_swapping_the_programs_turns_the_interval_over(store, rows):
    ours, theirs, groups = (list(column) for column in zip(*rows, strict=True))
    there = compared(store, ours, theirs, groups=groups)
    back = compared(store, theirs, ours, groups=groups)
    assert there.low - 1e-9 <= there.delta <= there.high + 1e-9
    assert (back.delta, back.low, back.high) == pytest.approx((-there.delta, -there.high, -there.low), abs=1e-9)


def test_reports_on_different_rows_are_refused(store):
    ours, theirs = report(store, [1, 0, 1]), report(store, [1, 0])
    with pytest.raises(
        DatasetError, match=r"3 of the candidate \(1 only there\) and 2 of the champion \(0 only there\)"
    ):
        compare(ours, theirs, store, alpha=0.01, looks=1, alpha_left=0.5)
    twice = report(store, [1, 0], rows=["a", "a"])
    with pytest.raises(DatasetError, match="same rows"):
        compare(twice, twice, store, alpha=0.01, looks=1, alpha_left=0.5)


def test_rows_that_are_gone_are_a_cache_miss(store):
    seen = report(store, [1, 0])
    gone = seen.model_copy(update={"rows": Ref(sha256="0" * 64, kind="parquet")})
    with pytest.raises(ObjectMissing):
        compare(gone, seen, store, alpha=0.01, looks=1, alpha_left=0.5)


def test_prompt_tokens_that_were_not_counted_are_no_saving(store):
    ours, theirs = report(store, [1, 0]), report(store, [1, 0], prompt_tokens=0)
    assert compare(ours, theirs, store, alpha=0.01, looks=1, alpha_left=0.5).tokens_ratio == 1


# ---- the gate ----


def verdict(comparison, *, changed=True, val_better=True):
    return decide.verdict(comparison, changed=changed, val_better=val_better)


def test_a_candidate_that_is_shown_to_be_better_is_promoted(store):
    outcome, reason = verdict(compared(store, *paired(30, 10, 240)))
    assert outcome == "promoted"
    assert reason == "Better than the champion: +8.3 points on 240 sealed rows (97.5 % interval +2.6 to +14.5)."


def test_a_gain_that_may_be_chance_is_refused_and_the_reason_says_what_would_have_been_seen(store):
    outcome, reason = verdict(compared(store, *paired(20, 16, 240)))
    assert outcome == "refused"
    assert "Not shown to be better" in reason and "four times in five" in reason


def test_a_loss_is_refused_as_one(store):
    outcome, reason = verdict(compared(store, *paired(10, 30, 240), tokens=100))
    assert outcome == "refused"
    assert reason.startswith("Worse than the champion: -8.3 points")


@pytest.mark.parametrize(
    ("low", "tokens_ratio", "outcome"),
    [
        (0.0001, 2.0, "promoted"),
        (0.0, 0.91, "refused"),
        (0.0, 0.90, "promoted"),
        (-0.0099, 0.90, "promoted"),
        (-0.01, 0.10, "refused"),
        (-0.0099, 0.901, "refused"),
    ],
)
def test_the_edges_of_the_gate(store, low, tokens_ratio, outcome):
    seen = compared(store, *paired(1, 0, 4)).model_copy(update={"low": low, "tokens_ratio": tokens_ratio})
    assert verdict(seen).outcome == outcome


def test_fewer_prompt_tokens_are_named_as_the_reason(store):
    seen = compared(store, *paired(1, 0, 4), tokens=600).model_copy(update={"low": -0.005})
    assert "with 40% fewer prompt tokens" in verdict(seen).reason


def test_candidates_that_need_no_test_are_not_shown_it():
    assert verdict(None, changed=False).outcome == "unchanged"
    assert verdict(None, changed=False, val_better=False).outcome == "unchanged"
    outcome, reason = verdict(None, val_better=False)
    assert outcome == "refused" and "sealed test was not opened" in reason
    with pytest.raises(ValueError, match="judged by evidence"):
        verdict(None)


def test_when_little_is_left_the_reason_says_that_fresh_rows_are_due(store):
    ours, theirs = paired(30, 10, 240)
    assert "fresh labelled rows" not in verdict(compared(store, ours, theirs, left=0.21)).reason
    reason = verdict(compared(store, ours, theirs, left=0.178, looks=6)).reason
    assert reason.endswith(
        "Only 18% of the false-promotion rate is left after 6 openings: fresh labelled rows are due."
    )


def test_a_level_close_to_one_is_not_printed_as_certainty(store):
    assert "99.9999998 % interval" in verdict(compared(store, *paired(200, 0, 240), alpha=1e-9)).reason


# ---- ninety nights ----


@pytest.fixture(scope="module")
def nightly_alphas(tmp_path_factory) -> np.ndarray:
    ledger = Ledger(Path(tmp_path_factory.mktemp("ledger")) / "ledger.jsonl")
    rows = [f"row{i}" for i in range(20)]
    return np.array([ledger.grant(rows, project="p", candidate=str(night), champion="c").alpha for night in range(90)])


LIVES = 2000
MONTE_CARLO = 3 * (0.05 * 0.95 / LIVES) ** 0.5


@pytest.mark.parametrize("discordance", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("n", [60, 240])
def test_ninety_nights_of_equal_programs_seldom_promote_one(nightly_alphas, n, discordance):
    """Independent candidates, each exactly as good as the champion: the worst case, as nothing is learnt from a look."""
    shares = [discordance / 2, discordance / 2, 1 - discordance]
    counts = np.random.default_rng(n).multinomial(n, shares, (LIVES, 90))
    low, _ = tango(counts[..., 0], counts[..., 1], n, nightly_alphas)
    assert (low > 0).any(axis=1).mean() <= 0.05 + MONTE_CARLO


def test_ninety_nights_of_cheaper_programs_seldom_promote_one_that_is_a_point_worse(nightly_alphas):
    n, discordance = 1000, 0.1
    shares = [(discordance - 0.01) / 2, (discordance + 0.01) / 2, 1 - discordance]
    counts = np.random.default_rng(7).multinomial(n, shares, (LIVES, 90))
    low, _ = tango(counts[..., 0], counts[..., 1], n, nightly_alphas)
    assert (low > -0.01).any(axis=1).mean() <= 0.05 + MONTE_CARLO


def skewed(random: np.random.Generator, n: int) -> np.ndarray:
    """A little better on most rows, a lost answer on a few: mean 0."""
    return np.where(random.uniform(size=n) < 0.02, -0.98, 0.02)


def rounded(random: np.random.Generator, n: int) -> np.ndarray:
    return random.choice([-0.5, -0.25, 0, 0.25, 0.5], n)


@pytest.mark.parametrize("draw", [skewed, rounded])
@pytest.mark.parametrize("n", [15, 120])
def test_graded_scores_keep_the_rate_too(nightly_alphas, draw, n):
    """Of the first eight nights, which spend 90 % of the rate."""
    random, lives = np.random.default_rng(n), 150
    promoted = [
        any(
            bootstrap(draw(random, n), np.arange(n), alpha, limits=DIFFERENCES, resamples=300).low > 0
            for alpha in nightly_alphas[:8]
        )
        for _ in range(lives)
    ]
    assert np.mean(promoted) <= 0.05 + 3 * (0.05 * 0.95 / lives) ** 0.5
