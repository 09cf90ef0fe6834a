"""Rows won and lost, and scores by class, from two per-row tables."""

from __future__ import annotations

from typing import Any, Literal

from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.report.answers import MOST, changes, classes
from dspy_toolkit.report.words import Field
from tests.report.made import row, table

COLOUR = {"label": Literal["red", "green", "blue"]}


def pair(before: list[float], after: list[float], expected: list[Any] | None = None) -> tuple[Any, Any]:
    labels = expected or ["red"] * len(before)

    def side(values: list[float]) -> Any:
        return table(
            [row(str(i), value, expected={"label": labels[i]}) for i, value in enumerate(values)],
        )

    return side(before), side(after)


def test_rows_are_won_and_lost() -> None:
    seen = changes(*pair([0, 1, 1, 0], [1, 0, 1, 0]))
    assert (seen.rows, seen.won_count, seen.lost_count) == (4, 1, 1)
    (won,), (lost,) = seen.won, seen.lost
    assert won.inputs == (Field("text", "text 0"),)
    assert won.expected == (Field("label", "red"),)
    assert (won.before.score, won.before.feedback, won.after.score) == (0.0, "Wrong.", 1.0)
    assert lost.row == "1"


def test_the_greatest_differences_come_first_and_then_each_answer_in_turn() -> None:
    before = [0.0, 0.0, 0.0, 0.0, 0.9]
    after = [1.0, 1.0, 1.0, 1.0, 1.0]
    seen = changes(*pair(before, after, ["red", "red", "blue", "green", "red"]))
    assert [case.row for case in seen.won] == ["0", "2", "3", "1", "4"]


def test_no_more_than_some_are_shown_and_all_are_counted() -> None:
    seen = changes(*pair([0.0] * 60, [1.0] * 60))
    assert (len(seen.won), seen.won_count, seen.lost) == (MOST, 60, ())


def test_what_could_not_be_read_is_said() -> None:
    before = table([row("a", 0, prediction=None, status="parse_failure", feedback="The reply cannot be read: 'x'")])
    seen = changes(before, table([row("a", 1)]))
    assert seen.won[0].before.fields == ()
    assert seen.won[0].before.fault == "The reply could not be read."


def test_rows_that_one_side_lacks_are_left_out() -> None:
    assert changes(table([row("a", 0)]), table([row("a", 1), row("b", 1)])).rows == 1
    assert changes(table([row("a", 0)]), table([row("b", 1)])).rows == 0


scores = st.sampled_from([0.0, 0.25, 1.0])


@given(st.lists(st.tuples(scores, scores, st.sampled_from(["red", "green", "blue"])), min_size=1, max_size=40))
def test_the_books_balance(rows: list[tuple[float, float, str]]) -> None:
    """Won, lost and alike are all rows; the classes are a partition of them, and their gains make the whole gain."""
    before, after = pair(*map(list, zip(*rows, strict=True)))
    seen = changes(before, after)
    alike = sum(a == b for a, b, _ in rows)
    assert seen.won_count + seen.lost_count + alike == seen.rows == len(rows)
    assert changes(after, before).won_count == seen.lost_count
    gains = [abs(case.after.score - case.before.score) for case in seen.won]
    assert gains == sorted(gains, reverse=True)
    for made in classes(before, after, ["label"], COLOUR):
        assert sum(line.rows for line in made.rows) == len(rows)
        total = sum(line.gain * line.rows for line in made.rows)
        assert abs(total - sum(b - a for a, b, _ in rows)) < 1e-6


def test_classes_stand_in_the_types_order() -> None:
    (made,) = classes(*pair([0, 1, 1, 0], [1, 1, 0, 0], ["blue", "red", "red", "green"]), ["label"], COLOUR)
    assert [(line.value, line.rows, line.before, line.after) for line in made.rows] == [
        ("red", 2, "2 of 2 (100.0 %)", "1 of 2 (50.0 %)"),
        ("green", 1, "0 of 1 (0.0 %)", "0 of 1 (0.0 %)"),
        ("blue", 1, "0 of 1 (0.0 %)", "1 of 1 (100.0 %)"),
    ]
    assert [line.gain for line in made.rows] == [-0.5, 0.0, 1.0]


def test_graded_scores_have_means() -> None:
    (made,) = classes(*pair([0.5, 1], [1, 1], ["blue", "red"]), ["label"], COLOUR)
    assert [(line.before, line.after) for line in made.rows] == [("100.0 %", "100.0 %"), ("50.0 %", "100.0 %")]


def test_few_values_of_any_type_are_classes_and_many_are_not() -> None:
    types = {"label": str}
    few = [str(number % 3) for number in range(12)]
    (made,) = classes(*pair([0] * 12, [1] * 12, few), ["label"], types)
    assert [line.value for line in made.rows] == ["0", "1", "2"]
    many = [str(number) for number in range(12)]
    assert classes(*pair([0] * 12, [1] * 12, many), ["label"], types) == ()
    assert classes(*pair([0] * 12, [1] * 12, ["x"] * 12), ["label"], types) == ()


def test_odd_labels_are_no_fault() -> None:
    nothing = [None, "red", None, "red", None, "red"]
    (made,) = classes(*pair([0] * 6, [1] * 6, nothing), ["label"], {})
    assert {line.value for line in made.rows} == {"null", "red"}
    lists = [["a"], ["b"], {"c": 1}] * 4
    assert classes(*pair([0] * 12, [1] * 12, lists), ["label"], {"label": list}) == ()
    unknown = ["red", "purple", "red"]
    (made,) = classes(*pair([0] * 3, [1] * 3, unknown), ["label"], COLOUR)
    assert [line.value for line in made.rows] == ["red", "purple"]


def test_no_rows_are_no_classes() -> None:
    assert classes(table([row("a", 0)]), table([row("b", 1)]), ["label"], COLOUR) == ()
