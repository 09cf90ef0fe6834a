"""What paired scores show, and what that is enough for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_toolkit.errors import DatasetError
from dspy_toolkit.gate.evidence import Evidence, compare, row_means
from dspy_toolkit.gate.intervals import tango
from dspy_toolkit.gate.verdict import Verdict, not_opened, unchanged, weigh


def compared(ours, theirs, *, groups=None, alpha=0.0125, looks=1, left=0.75, tokens=1.0, anchor=None) -> Evidence:
    groups = list(range(len(ours))) if groups is None else groups
    return compare(ours, theirs, groups, alpha=alpha, looks=looks, alpha_left=left, tokens_ratio=tokens, anchor=anchor)


def scores(*results: tuple[int, float]) -> list[float]:
    """`(3, 1), (2, 0)`: three rows of score 1, then two of 0."""
    return [value for count, value in results for _ in range(count)]


def paired(wins: int, losses: int, n: int) -> tuple[list[int], list[int]]:
    same = n - wins - losses
    return [1] * wins + [0] * losses + [1] * same, [0] * wins + [1] * losses + [1] * same


def test_right_and_wrong_answers_are_compared_by_tango():
    seen = compared(*paired(30, 10, 240))
    assert seen.test == "tango"
    assert seen.delta == pytest.approx(20 / 240)
    assert (seen.low, seen.high) == tuple(map(float, tango(30, 10, 240, 0.0125)))
    assert (seen.level, seen.looks, seen.alpha_left) == (0.975, 1, 0.75)
    assert 0.04 < seen.detectable_effect < 0.12


def test_graded_scores_are_compared_by_their_bounded_mean():
    random = np.random.default_rng(0)
    theirs = random.uniform(0, 0.8, 100)
    seen = compared(theirs + random.uniform(0, 0.2, 100), theirs)
    assert seen.test == "bounded mean"
    assert 0 < seen.low < seen.delta < seen.high < 0.2
    assert (seen.groups, seen.effective_groups) == (100, pytest.approx(100))


def test_rows_that_share_groups_say_less():
    ours, theirs = paired(30, 10, 240)
    seen = compared(ours, theirs, groups=[f"group{i // 2}" for i in range(240)])
    assert seen.test == "bounded mean"
    assert seen.low < float(tango(30, 10, 240, 0.0125)[0]), "neighbours that win together say less"
    assert (seen.n, seen.groups, seen.effective_groups) == (240, 120, pytest.approx(120))


def test_one_large_group_counts_as_few():
    seen = compared(*paired(30, 10, 100), groups=[0] * 50 + list(range(1, 51)))
    assert seen.groups == 51
    assert seen.effective_groups == pytest.approx(100**2 / (50**2 + 50)), "Kish: (Σn)² / Σn²"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0, 0.25, 1])] * 2, st.integers(0, 20)), min_size=1, max_size=30))
def test_swapping_the_programs_turns_the_interval_over(rows):
    ours, theirs, groups = (list(column) for column in zip(*rows, strict=True))
    there = compared(ours, theirs, groups=groups)
    back = compared(theirs, ours, groups=groups)
    assert there.low - 1e-9 <= there.delta <= there.high + 1e-9
    assert (back.delta, back.low, back.high) == pytest.approx((-there.delta, -there.high, -there.low), abs=1e-9)


def test_the_mean_of_its_repeats_is_a_rows_score():
    assert row_means([[1, 0, 1, 1], 0.5, [0]]).tolist() == [0.75, 0.5, 0]
    assert row_means(np.array([[1, 0], [1, 1]])).tolist() == [0.5, 1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "scores are empty"),
        ([0.5, 1.5], r"score of row 2 is 1.5, outside \[0, 1\]"),
        ([float("nan")], "score of row 1 is nan, outside"),
        ([0.5, "good"], "score of row 2 is 'good', not a number"),
        ([[]], r"score of row 1 is \[\]: give a number"),
    ],
)
def test_what_is_no_score_is_refused_with_its_row(given, said):
    with pytest.raises(DatasetError, match=said):
        row_means(given, "The old")


# ---- the gate ----


def told(evidence: Evidence) -> tuple[str, str]:
    found = weigh(evidence)
    return found.outcome, found.reason


def test_a_candidate_that_is_shown_to_be_better_is_promoted():
    outcome, reason = told(compared(*paired(30, 10, 240)))
    assert outcome == "promoted"
    assert reason == "Better than the champion: +8.3 points on 240 sealed rows (97.5 % interval +2.6 to +14.5)."


def test_a_gain_that_may_be_chance_is_refused_and_the_reason_says_what_would_have_been_seen():
    outcome, reason = told(compared(*paired(20, 16, 240)))
    assert outcome == "refused"
    assert "Not shown to be better" in reason and "four times in five" in reason


def test_a_loss_is_refused_as_one():
    outcome, reason = told(compared(*paired(10, 30, 240), tokens=0.1))
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
def test_the_edges_of_the_gate(low, tokens_ratio, outcome):
    seen = compared(*paired(1, 0, 4)).model_copy(update={"low": low, "tokens_ratio": tokens_ratio})
    assert weigh(seen).outcome == outcome


def test_fewer_prompt_tokens_are_named_as_the_reason():
    seen = compared(*paired(1, 0, 4), tokens=0.6).model_copy(update={"low": -0.005})
    assert "with 40% fewer prompt tokens" in weigh(seen).reason


def test_candidates_that_need_no_test_are_not_shown_it():
    assert unchanged().outcome == "unchanged"
    assert not_opened("Worse.") == Verdict(outcome="refused", reason="Worse.")


def test_where_rows_share_groups_the_reason_says_what_they_weigh():
    seen = compared(*paired(60, 5, 240), groups=[i // 3 for i in range(240)])
    assert "on 240 sealed rows in 80 groups (effective number 80.0) (" in weigh(seen).reason


# ---- the anchor ----


def test_a_cheaper_one_is_measured_from_the_anchor_and_not_from_the_champion_of_the_day():
    """Level with a champion that lost three points on the way: still too far from where it came from."""
    same = scores((970, 1), (30, 0))
    before = scores((1000, 1))
    assert weigh(compared(same, same, tokens=0.5)).promoted_for == "tokens"
    seen = compared(same, same, tokens=0.5, anchor=before)
    assert seen.anchor_delta == pytest.approx(-0.03) and seen.anchor_low < -0.03
    assert weigh(seen).outcome == "refused"


def test_a_cheaper_one_near_the_anchor_is_promoted_and_the_reason_names_it():
    same, before = scores((1000, 1)), scores((999, 1), (1, 0))
    found = weigh(compared(same, scores((998, 1), (2, 0)), tokens=0.5, anchor=before))
    assert (found.outcome, found.promoted_for) == ("promoted", "tokens")
    assert "than the last champion that was promoted for quality (+0.1 points, at least -0." in found.reason
    assert "with 50% fewer prompt tokens than the champion" in found.reason


def test_two_ways_to_be_promoted_share_the_alpha():
    same = scores((90, 1), (10, 0))
    assert compared(same, same, tokens=0.9, anchor=same).level == pytest.approx(1 - 0.0125)
    assert compared(same, same, tokens=0.95, anchor=same).level == pytest.approx(1 - 0.025), "not cheaper: one way"
    assert compared(same, same, tokens=0.9).level == pytest.approx(1 - 0.025), "one interval for both"


def test_what_beats_a_cheap_champion_is_the_next_anchor_only_once_it_beats_the_old_one():
    champion, anchor = scores((500, 0), (500, 1)), scores((300, 0), (700, 1))
    better, best = scores((350, 0), (650, 1)), scores((200, 0), (800, 1))
    assert weigh(compared(better, champion, anchor=anchor)).promoted_for == "tokens"
    assert weigh(compared(best, champion, anchor=anchor)).promoted_for == "quality"
    assert weigh(compared(better, champion)).promoted_for == "quality"


def test_when_little_is_left_the_reason_says_that_fresh_rows_are_due():
    ours, theirs = paired(30, 10, 240)
    assert "fresh labelled rows" not in weigh(compared(ours, theirs, left=0.21)).reason
    reason = weigh(compared(ours, theirs, left=0.178, looks=6)).reason
    assert reason.endswith(
        "Only 18% of the false-promotion rate is left after 6 openings: fresh labelled rows are due."
    )


def test_a_level_close_to_one_is_not_printed_as_certainty():
    assert "99.9999998 % interval" in weigh(compared(*paired(200, 0, 240), alpha=1e-9)).reason
