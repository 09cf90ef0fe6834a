"""A judge that flatters gives a high mean; people's grades of forty answers show what it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy

from dspy_toolkit.evaluation import agree, calibrate, corrected_mean, evaluate
from dspy_toolkit.metrics import judge
from dspy_toolkit.store import Store
from dspy_toolkit.testing import fake_connection
from tests.evaluation.made import SPEC, rows

RIGHT = 0.4
"""The share of answers that people pass."""


def flatters(request: Any) -> Any:
    """Answers "yes" to all; as a judge gives full marks to all but every eighth of the wrong answers."""
    user = request.messages[-1].content
    if "[[ ## answer ## ]]" not in user:
        return {"label": "yes"}
    number = int(user.split("text 0")[1][:2])
    bad = not is_right(number) and number % 8 == 7
    return {"reason": "No." if bad else "Wonderful!", "grade": 1 if bad else 5}


def is_right(number: int) -> bool:
    return number % 5 < 2


def test_a_judge_that_flatters_is_found_out(tmp_path: Path) -> None:
    connection, store = fake_connection(flatters, tmp_path), Store(str(tmp_path / "objects"))
    report = evaluate(
        dspy.Predict("text -> label"),
        rows(*["yes"] * 80),
        SPEC,
        judge("Is it true?"),
        split="val",
        lm=connection.lm,
        adapter=connection.adapter,
        store=store,
    )
    assert report.mean > 0.9, "the judge likes nearly everything"
    scores = store.read_frame(report.rows)["value"].tolist()
    people = [float(is_right(number)) for number in range(80)]
    known, checked = calibrate(scores[:40], people[:40]), agree(scores[:40], people[:40])
    assert checked.kappa is not None
    assert checked.kappa.value < 0.2 and checked.kappa.low < 0.05
    assert known.sensitivity is not None and known.sensitivity.value == 1
    assert known.specificity is not None and known.specificity.value < 0.2

    rest = scores[40:]
    corrected = corrected_mean(sum(score >= 0.5 for score in rest), len(rest), known)
    assert report.low > 0.8 > corrected.low, "its own interval leaves the truth out"
    assert corrected.low <= RIGHT <= corrected.high
    assert corrected.high - corrected.low > 0.5, "and little is known through such a judge"


def test_an_honest_judge_is_confirmed() -> None:
    people = [float(number % 5 < 2) for number in range(60)]
    honest = [score if number % 15 else 1 - score for number, score in enumerate(people)]
    kappa = agree(honest, people).kappa
    assert kappa is not None
    assert kappa.value > 0.8 and kappa.low > 0.6
    corrected = corrected_mean(100, 300, calibrate(honest, people))
    assert corrected.low < RIGHT < corrected.high < 0.6
