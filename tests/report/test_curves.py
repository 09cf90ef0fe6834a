"""The best so far for every generator, what no candidate beats, and the charts of both."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dspy_toolkit.optimizers.compile import Compiled, GeneratorResult
from dspy_toolkit.report.charts import KINDS, front_chart, key_mark, search_chart
from dspy_toolkit.report.curves import baseline, curves, front
from dspy_toolkit.store import Ref
from tests.report.looking import Seen
from tests.report.made import trial


def compiled(*trials: Any, generators: tuple[GeneratorResult, ...] = ()) -> Compiled:
    nothing = Ref(sha256="0" * 64, kind="json")
    return Compiled(optimizer="gepa", program=nothing, changed=True, seconds=1.0, trials=trials, generators=generators)


def result(name: str, verdict: Any = "behind") -> GeneratorResult:
    return GeneratorResult(name=name, verdict=verdict, reason="So it was.")


def test_a_curve_holds_the_best_so_far() -> None:
    (curve,) = curves(compiled(trial("baseline", 0.2, 10), trial("b", 0.5, 40), trial("c", 0.4, 70)))
    assert curve.name == "gepa"
    assert [(point.label, point.score, point.best) for point in curve.points] == [
        ("baseline", 0.2, 0.2),
        ("b", 0.5, 0.5),
        ("c", 0.4, 0.5),
    ]


def test_the_generators_have_a_curve_each_the_winner_first() -> None:
    trials = (
        trial("baseline", 0.2, 10, "baseline"),
        trial("a", 0.3, 30, "bootstrap"),
        trial("b", 0.5, 40, "mipro"),
        trial("c", 0.4, 20, "bootstrap"),
    )
    found = curves(compiled(*trials, generators=(result("mipro", "won"), result("bootstrap"), result("gepa"))))
    assert [curve.name for curve in found] == ["mipro", "bootstrap", "baseline"]
    assert [point.label for point in found[1].points] == ["c", "a"]


def test_a_curve_shows_what_is_expected_of_a_candidate_not_what_few_rows_said() -> None:
    (curve,) = curves(compiled(trial("lucky", 1.0, 10, expected=0.4, rows=8), trial("good", 0.6, 40, expected=0.5)))
    assert [point.best for point in curve.points] == [0.4, 0.5]


def test_the_baseline_is_the_first_candidate() -> None:
    assert baseline(compiled(trial("baseline", 0.3, 10)).model_copy(update={"val_baseline": 0.9})) == 0.3
    assert baseline(compiled()) == 0.0


def test_the_front_needs_tokens_and_takes_seconds_only_when_all_have_them() -> None:
    assert front(compiled(trial("a", 0.5, 1), trial("b", 0.6, 2))) is None
    cached = front(compiled(trial("a", 0.5, 1, tokens=10), trial("b", 0.6, 2, tokens=20, seconds=0.5)))
    assert cached is not None and not cached.timed
    assert [(one.label, one.on_front, one.seconds) for one in cached.candidates] == [
        ("b", True, 0.5),
        ("a", True, None),
    ]
    slow = trial("slow", 0.5, 1, tokens=10, seconds=9.0)
    quick = trial("quick", 0.5, 2, tokens=11, seconds=1.0)
    worse = trial("worse", 0.4, 3, tokens=12, seconds=9.0)
    made = front(compiled(slow, quick, worse))
    assert made is not None and made.timed
    assert {one.label for one in made.candidates if one.on_front} == {"slow", "quick"}


measured = st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4))


@given(st.lists(measured, min_size=2, max_size=12))
def test_what_is_on_the_front_is_beaten_by_none_and_the_rest_by_one_of_it(given: list[tuple[int, int, int]]) -> None:
    made = front(compiled(*(trial(str(i), s / 4, i, tokens=t, seconds=w) for i, (s, t, w) in enumerate(given))))
    assert made is not None

    def beats(one: Any, other: Any) -> bool:
        mine, its = (one.score, -one.tokens, -one.seconds), (other.score, -other.tokens, -other.seconds)
        return mine != its and all(a >= b for a, b in zip(mine, its, strict=True))

    best = [one for one in made.candidates if one.on_front]
    assert best
    for one in made.candidates:
        assert any(beats(other, one) for other in best) != one.on_front


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**6)), min_size=1, max_size=30),
    st.floats(0, 1),
)
def test_marks_lie_in_the_frame_whatever_the_numbers(points: list[tuple[float, int]], baseline: float) -> None:
    made = compiled(*(trial(f"t{i}", score, calls, f"generator {i % 10}") for i, (score, calls) in enumerate(points)))
    chart = str(search_chart(curves(made), baseline))
    seen = Seen(chart)
    assert "nan" not in chart and "inf" not in chart
    places = [attrs for tag, attrs in seen.attributes if tag == "circle"]
    assert all(62 <= float(a["cx"] or -1) <= 700 and 18 <= float(a["cy"] or -1) <= 288 for a in places)
    marks = [attrs for tag, attrs in seen.attributes if "mark" in (attrs.get("class") or "")]
    assert len(marks) == len(points)
    texts = [attrs for tag, attrs in seen.attributes if tag == "text"]
    assert 5 <= len(texts) <= 20


def test_steps_only_rise() -> None:
    found = curves(compiled(*(trial(str(i), score, 10 * i) for i, score in enumerate([0.3, 0.1, 0.5, 0.5, 0.9]))))
    assert all(after.best >= before.best for before, after in pairwise(found[0].points))
    assert 'd="M' in search_chart(found, 0.3)


def test_what_optimizers_call_their_candidates_is_escaped() -> None:
    made = compiled(trial("<script>alert(1)</script>", 0.5, 1, tokens=5), trial("b", 0.6, 2, tokens=6))
    found = front(made)
    assert found is not None
    for chart in (search_chart(curves(made), 0.1), front_chart(found, ["gepa"])):
        assert "<script" not in chart
        assert "&lt;script&gt;" in chart


def test_every_generator_has_a_shape_of_its_own() -> None:
    marks = [str(key_mark(kind)) for kind in range(KINDS)]
    assert len({mark.replace(f"k{kind}", "") for kind, mark in enumerate(marks)}) == KINDS
    assert str(key_mark(KINDS)) == marks[0]
